//! The timer of a local APIC (SDM vol. 3A, 12.5.4). Its clock is the machine's.

/// What bits 17 and 18 of its LVT entry select.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    /// IA32_TSC_DEADLINE alone arms it.
    Deadline,
    /// Reserved: it never ends.
    None,
}

impl Mode {
    pub fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::Deadline,
            _ => Self::None,
        }
    }
}

/// Counts down from a number, or up to a deadline.
#[derive(Clone, Debug, Default)]
pub(super) struct Timer {
    initial: u32,
    /// As the register has it.
    divide: u32,
    /// When it ends; `None` if it is stopped.
    expires: Option<u64>,
}

impl Timer {
    /// Ticks of the clock to one of the counter.
    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    pub fn divide(&self) -> u32 {
        self.divide
    }

    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// What is left of the count.
    pub fn current(&self, mode: Mode, now: u64) -> u32 {
        match self.expires {
            Some(at) if mode != Mode::Deadline => at.saturating_sub(now).div_ceil(self.divisor()) as u32,
            _ => 0,
        }
    }

    /// Starts with a count; stops with 0. A timer that waits for deadlines takes none.
    pub fn start(&mut self, initial: u32, mode: Mode, now: u64) {
        if mode != Mode::Deadline {
            self.initial = initial;
            self.expires = (initial != 0).then(|| now.saturating_add(self.period()));
        }
    }

    /// The count goes on where it was, at another rate.
    pub fn set_divide(&mut self, divide: u32, mode: Mode, now: u64) {
        let left = self.current(mode, now);
        self.divide = divide;
        if mode != Mode::Deadline && self.expires.is_some() {
            self.expires = Some(now.saturating_add(u64::from(left) * self.divisor()));
        }
    }

    /// A change between deadlines and counts stops it; one between counts does not touch it.
    pub fn change_mode(&mut self, old: Mode, new: Mode) {
        if old != new && [old, new].contains(&Mode::Deadline) {
            self.expires = None;
            self.initial = 0;
        }
    }

    /// Arms it for that time of the clock, or stops it.
    pub fn set_deadline(&mut self, at: Option<u64>) {
        self.expires = at;
    }

    /// Whether it has ended since the last call.
    pub fn advance(&mut self, mode: Mode, now: u64) -> bool {
        let Some(at) = self.expires.filter(|&at| at <= now) else { return false };
        let period = self.period();
        self.expires = match mode {
            Mode::Periodic if period != 0 => Some(now.saturating_add(period - (now - at) % period)),
            _ => None,
        };
        true
    }
}
