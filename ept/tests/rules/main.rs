//! Each rule of the formats, walks, tables and faults, checked against hand-made cases.

mod entries;
mod extensions;
mod judging;
mod legacy;
mod mapper;
mod nested;
mod quick;
mod roots;
mod tdp;
mod walks;
