//! Page-table formats, walkers, mapper and the two-dimensional MMU of a hypervisor.
