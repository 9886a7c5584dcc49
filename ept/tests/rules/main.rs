//! Each rule of the formats, walks, tables and faults, checked against an oracle or a hand-made case.

mod differential;
mod entries;
mod host;
mod mapper;
mod nested;
mod oracle;
mod roots;
mod tdp;
mod walks;
