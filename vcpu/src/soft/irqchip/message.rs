//! What travels between APICs: an interrupt, and who is to have it (SDM vol. 3A, 12.6).

/// How an interrupt is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Delivery {
    /// To all of its destination.
    Fixed,
    /// To one of them.
    LowestPriority,
    Nmi,
    Init,
    Startup,
    /// The vector comes from the 8259s.
    ExtInt,
    /// SMI, or a reserved code: nothing comes of it.
    Other,
}

impl Delivery {
    /// Bits 8 to 10 of ICR, of an LVT entry or of a redirection entry.
    pub fn of(register: u32) -> Self {
        match register >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => Self::Other,
        }
    }
}

/// Whom an interrupt is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Destination {
    /// The sender.
    Itself,
    All,
    /// All but the sender.
    Others,
    /// An APIC ID.
    Physical(u32),
    /// A mask of logical IDs.
    Logical(u32),
}

/// An interrupt on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub vector: u8,
    pub delivery: Delivery,
    pub destination: Destination,
    /// Level-triggered: its EOI goes back to the I/O APIC.
    pub level: bool,
    /// The destination has 32 bits, and its broadcast is all ones.
    pub x2apic: bool,
}

impl Message {
    /// What a write of the low half of ICR sends; `None` for INIT level de-assert, which nothing comes of.
    pub fn of_icr(low: u32, destination: u32, x2apic: bool) -> Option<Self> {
        let delivery = Delivery::of(low);
        let (asserted, level) = (low >> 14 & 1 != 0, low >> 15 & 1 != 0);
        if delivery == Delivery::Init && level && !asserted {
            return None;
        }
        let destination = match low >> 18 & 3 {
            0 if low >> 11 & 1 == 0 => Destination::Physical(destination),
            0 => Destination::Logical(destination),
            1 => Destination::Itself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        // Edge or level makes a difference to INIT alone.
        Some(Self { vector: low as u8, delivery, destination, level: false, x2apic })
    }
}
