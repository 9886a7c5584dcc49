//! The chips, without a processor.
