//! The two 8259A interrupt controllers of a PC, the second on line 2 of the first.

/// The first port of each controller; its data port follows.
pub(super) const PORTS: [u16; 2] = [0x20, 0xa0];
/// Edge or level, for each controller.
pub(super) const ELCR: [u16; 2] = [0x4d0, 0x4d1];
/// The line that the second controller is on.
const CASCADE: u8 = 2;
/// Lines of each controller that may be level-triggered: not the timer's, the keyboard's, the cascade's, ...
const MAY_BE_LEVEL: [u8; 2] = [0xf8, 0xde];

/// What the next write to the data port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Mask,
    /// ICW2: the first vector.
    Vector,
    /// ICW3: who is on which line. It is as in every PC.
    Cascade,
    /// ICW4: modes.
    Modes,
}

/// One 8259A.
#[derive(Clone, Debug)]
struct Pic {
    requested: u8,
    in_service: u8,
    mask: u8,
    /// The lines as they are.
    lines: u8,
    level: u8,
    vector: u8,
    expects: Expects,
    /// ICW1 said that there will be an ICW4, and that there is no second controller.
    needs_modes: bool,
    single: bool,
    /// The line of lowest priority: the next one has the highest.
    lowest: u8,
    auto_end: bool,
    rotates: bool,
    special_mask: bool,
    special_nested: bool,
    reads_in_service: bool,
    /// The next read acknowledges.
    polled: bool,
}

impl Pic {
    fn new(vector: u8) -> Self {
        Self {
            requested: 0,
            in_service: 0,
            mask: 0,
            lines: 0,
            level: 0,
            vector,
            expects: Expects::Mask,
            needs_modes: false,
            single: false,
            lowest: 7,
            auto_end: false,
            rotates: false,
            special_mask: false,
            special_nested: false,
            reads_in_service: false,
            polled: false,
        }
    }

    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        if self.level & bit != 0 {
            self.requested = self.requested & !bit | if high { bit } else { 0 };
        } else if high && self.lines & bit == 0 {
            self.requested |= bit;
        }
        self.lines = self.lines & !bit | if high { bit } else { 0 };
    }

    /// How far down a set of lines its most important one is; 8 if it is empty.
    fn rank(&self, lines: u8) -> u32 {
        lines.rotate_right(u32::from(self.lowest + 1) & 7).trailing_zeros()
    }

    fn line_of(&self, rank: u32) -> u8 {
        (rank as u8 + self.lowest + 1) & 7
    }

    /// The line that asks for the processor now. `cascade` are lines with another controller, which in special fully
    /// nested mode may ask again while they are served.
    fn pending(&self, cascade: u8) -> Option<u8> {
        let mut served = self.in_service;
        if self.special_mask {
            served &= !self.mask;
        }
        if self.special_nested {
            served &= !cascade;
        }
        let asking = self.rank(self.requested & !self.mask);
        (asking < self.rank(served)).then(|| self.line_of(asking))
    }

    fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        if self.level & bit == 0 {
            self.requested &= !bit;
        }
        if !self.auto_end {
            self.in_service |= bit;
        } else if self.rotates {
            self.lowest = line;
        }
    }

    fn write_command(&mut self, value: u8) {
        match value >> 3 & 3 {
            0b10 | 0b11 => self.initialize(value),
            0b01 => self.select(value),
            _ => self.end_of_interrupt(value),
        }
    }

    /// ICW1.
    fn initialize(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            requested: self.requested & self.level,
            expects: Expects::Vector,
            needs_modes: value & 1 != 0,
            single: value & 2 != 0,
            ..Self::new(self.vector)
        };
    }

    /// OCW3.
    fn select(&mut self, value: u8) {
        self.polled = value & 4 != 0;
        if value & 2 != 0 {
            self.reads_in_service = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    /// OCW2.
    fn end_of_interrupt(&mut self, value: u8) {
        let (rotate, specific, end) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        let line = match (specific, end) {
            (true, _) => value & 7,
            (false, true) => match self.rank(self.in_service) {
                8.. => return,
                rank => self.line_of(rank),
            },
            (false, false) => {
                self.rotates = rotate;
                return;
            }
        };
        if end {
            self.in_service &= !(1 << line);
        }
        if rotate {
            self.lowest = line;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Vector => {
                self.vector = value & 0xf8;
                match (self.single, self.needs_modes) {
                    (false, _) => Expects::Cascade,
                    (true, true) => Expects::Modes,
                    (true, false) => Expects::Mask,
                }
            }
            Expects::Cascade if self.needs_modes => Expects::Modes,
            Expects::Cascade => Expects::Mask,
            Expects::Modes => {
                self.auto_end = value & 2 != 0;
                self.special_nested = value & 0x10 != 0;
                Expects::Mask
            }
        };
    }
}

/// Both of them: sixteen lines, and one wire to the processor.
#[derive(Clone, Debug)]
pub(super) struct Pics {
    pics: [Pic; 2],
    /// The wire to the processor is high.
    asks: bool,
}

impl Pics {
    /// As firmware leaves them: vectors 0x08 and 0x70, all lines open.
    pub fn new() -> Self {
        let mut pics = [Pic::new(0x08), Pic::new(0x70)];
        // Whatever the second one asks for is asked for as long as it does.
        pics[0].level = 1 << CASCADE;
        Self { pics, asks: false }
    }

    pub fn set_line(&mut self, line: u8, high: bool) {
        self.pics[usize::from(line / 8)].set_line(line % 8, high);
        self.connect();
    }

    /// The second controller's wire is a line of the first, and the first one's leads to the processor.
    fn connect(&mut self) {
        let asks = self.pics[1].pending(0).is_some();
        self.pics[0].set_line(CASCADE, asks);
        self.asks = self.pics[0].pending(1 << CASCADE).is_some();
    }

    /// Whether an interrupt waits.
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// The processor asks which interrupt it is: line 7 if none is left.
    pub fn acknowledge(&mut self) -> u8 {
        let [first, second] = &mut self.pics;
        let vector = match first.pending(1 << CASCADE) {
            None => first.vector + 7,
            Some(CASCADE) => {
                first.acknowledge(CASCADE);
                match second.pending(0) {
                    None => second.vector + 7,
                    Some(line) => {
                        second.acknowledge(line);
                        second.vector + line
                    }
                }
            }
            Some(line) => {
                first.acknowledge(line);
                first.vector + line
            }
        };
        self.connect();
        vector
    }

    pub fn read(&mut self, port: u16) -> Option<u8> {
        if let Some(which) = ELCR.iter().position(|&elcr| elcr == port) {
            return Some(self.pics[which].level & MAY_BE_LEVEL[which]);
        }
        let (which, is_data) = Self::addressed(port)?;
        let cascade = if which == 0 { 1 << CASCADE } else { 0 };
        let pic = &mut self.pics[which];
        if std::mem::take(&mut pic.polled) {
            let line = pic.pending(cascade);
            if let Some(line) = line {
                pic.acknowledge(line);
            }
            self.connect();
            return Some(line.map_or(0, |line| 0x80 | line));
        }
        Some(match (is_data, pic.reads_in_service) {
            (true, _) => pic.mask,
            (false, true) => pic.in_service,
            (false, false) => pic.requested,
        })
    }

    /// Whether the port is one of theirs.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        if let Some(which) = ELCR.iter().position(|&elcr| elcr == port) {
            let fixed = self.pics[which].level & !MAY_BE_LEVEL[which];
            self.pics[which].level = value & MAY_BE_LEVEL[which] | fixed;
        } else {
            match Self::addressed(port) {
                Some((which, true)) => self.pics[which].write_data(value),
                Some((which, false)) => self.pics[which].write_command(value),
                None => return false,
            }
        }
        self.connect();
        true
    }

    /// Which controller, and whether its data port.
    fn addressed(port: u16) -> Option<(usize, bool)> {
        let which = PORTS.iter().position(|&first| first == port & !1)?;
        Some((which, port & 1 != 0))
    }
}
