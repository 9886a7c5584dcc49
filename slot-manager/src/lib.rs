//! Memory slots: from a flat view to KVM_SET_USER_MEMORY_REGION, planned and checked.
