//! Each rule of the formats, walks, tables and faults, checked against an oracle or a hand-made case.

mod differential;
mod entries;
mod extensions;
mod host;
mod judging;
mod legacy;
mod mapper;
mod nested;
mod oracle;
mod quick;
mod roots;
mod tdp;
mod walks;
