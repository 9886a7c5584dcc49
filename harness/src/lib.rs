//! Boots guests and follows every page GVA, GPA, HVA, HPA: the program memvirt.
