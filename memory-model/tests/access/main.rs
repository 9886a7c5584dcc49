//! The access path: what reads, writes, mappings and translations reach, rule by rule.

mod device;
mod iommu;
mod mapping;
mod places;
mod rules;
mod splitting;
mod threads;
