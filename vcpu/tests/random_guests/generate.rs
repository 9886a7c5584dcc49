//! From a seed to a program.

use crate::dice::Dice;
use crate::kernel;
use crate::layout::{
    ALIAS, CHUNK, CODE, HOT, KERNEL_TABLES, LARGE, PAGE, RAM_BYTES, ROM, SLOTS, SPARE, STUBS,
    may_be_stored_to,
};
use crate::program::{
    Change, Edit, Flush, HostEvent, Op, PRIVATE, Program, SHARED, Setting, Step, Table, Touch, TouchKind,
    UPPER,
};
use crate::tables::Tables;

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const CACHING: u64 = 3 << 3;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
/// Bits that no processor looks at: 11:9 and 58:52.
const IGNORED: u64 = 7 << 9 | 0x7f << 52;
/// Bits above the widest physical address: 51:46.
const TOO_WIDE: u64 = 0x3f << 46;

/// Programs have this many steps at most.
const STEPS: u64 = 40;

/// The guest of a seed.
pub fn generate(seed: u64) -> Program {
    let mut dice = Dice::new(seed);
    let setting = Setting {
        five_levels: dice.percent(25),
        spaces: 1 + dice.below(3) as usize,
        large_kernel: dice.percent(40),
        far_tables: dice.percent(30),
        smep: dice.percent(30),
        smap: dice.percent(30),
        no_execute: dice.percent(85),
        huge_host: dice.percent(60),
        shifted: dice.percent(10),
    };
    let mut generator = Generator {
        pool: setting.pool(),
        tables: Tables::new(setting),
        setting,
        dice,
        favourites: Vec::new(),
        space: 0,
    };
    generator.favourites = (0..6).map(|_| generator.any_page()).collect();
    let tables = generator.tables();
    for (entry, value) in kernel::upper_tables(&setting).chain(tables.iter().copied()) {
        generator.tables.change(entry, Change::Set(value));
    }
    let count = 6 + generator.dice.below(STEPS - 5);
    let mut steps = Vec::new();
    while (steps.len() as u64) < count {
        let ops = generator.ops();
        steps.extend(ops.into_iter().map(|op| generator.step(op)));
    }
    Program { seed, setting, tables, steps }
}

struct Generator {
    setting: Setting,
    pool: Vec<Table>,
    dice: Dice,
    /// Pages that are touched most, so that something happens to them more than once.
    favourites: Vec<u64>,
    /// What the program makes of its tables.
    tables: Tables,
    /// The address space that it is in.
    space: usize,
}

impl Generator {
    fn tables(&mut self) -> Vec<(u64, u64)> {
        let mut entries = Vec::new();
        for table in self.pool.clone() {
            for &index in self.setting.indexes(table.level) {
                // The upper tables are mostly there, so that something lies below them.
                let value = match self.dice.percent(if table.level > 1 { 97 } else { 88 }) {
                    true => self.link_or_leaf(table),
                    false => 0,
                };
                if value != 0 {
                    entries.push((table.address + 8 * index, value));
                }
            }
        }
        entries
    }

    fn step(&mut self, op: Op) -> Step {
        let mut events = Vec::new();
        while self.dice.percent(35) {
            let after = self.dice.below(8) as u32;
            events.push((after, self.host_event()));
        }
        events.sort_by_key(|&(after, _)| after);
        Step { op, events }
    }

    /// What comes next: often a page is touched, its mapping changes, and it is touched again in the same way.
    fn ops(&mut self) -> Vec<Op> {
        if !self.dice.percent(30) {
            return vec![self.op()];
        }
        let page = self.dice.pick(&self.favourites);
        let mut touch = self.touch();
        touch.gva = page | (touch.gva % PAGE);
        let user = self.dice.percent(50);
        let use_it = || if user { Op::User(vec![touch]) } else { Op::Touch(touch) };
        let entry = self.entry_on_the_way_to(page);
        let edit = self.edit(entry);
        vec![use_it(), self.edits(vec![edit]), use_it()]
    }

    fn op(&mut self) -> Op {
        #[derive(Clone, Copy)]
        enum Kind {
            Touch,
            User,
            Loop,
            Edit,
            Demand,
            Switch,
            WriteProtect,
            AccessCheck,
            Port,
        }
        let kind = self.dice.weighted(&[
            (20, Kind::Touch),
            (20, Kind::User),
            (5, Kind::Loop),
            (35, Kind::Edit),
            (7, Kind::Demand),
            (9, Kind::Switch),
            (4, Kind::WriteProtect),
            (2, Kind::AccessCheck),
            (1, Kind::Port),
        ]);
        match kind {
            Kind::Touch => Op::Touch(self.touch()),
            Kind::User => Op::User(self.touches(3)),
            Kind::Loop => Op::Loop { times: 2 + self.dice.below(3) as u32, body: self.touches(2) },
            Kind::Edit => {
                let count = self.dice.pick(&[1, 1, 1, 2, 3, 5]);
                let mut edits = Vec::new();
                for _ in 0..count {
                    let entry = self.entry();
                    edits.push(self.edit(entry));
                }
                self.edits(edits)
            }
            Kind::Demand => {
                let touch = self.touch();
                let (table, entry) = self.entry_on_the_way_to(touch.gva);
                let value = self.link_or_leaf(table) & !TOO_WIDE;
                self.tables.change(entry, Change::Set(value));
                Op::Demand { entry, value, touch, user: self.dice.percent(50) }
            }
            Kind::Switch => {
                self.space = self.dice.below(self.setting.spaces as u64) as usize;
                Op::Switch(self.space)
            }
            Kind::WriteProtect => Op::FlipWriteProtect,
            Kind::AccessCheck => Op::FlipAccessCheck,
            Kind::Port => Op::Port(self.dice.roll() as u8),
        }
    }

    fn touches(&mut self, most: u64) -> Vec<Touch> {
        (0..1 + self.dice.below(most)).map(|_| self.touch()).collect()
    }

    /// The linear address of a page that tables can map.
    fn any_page(&mut self) -> u64 {
        let l5 = if self.setting.five_levels && self.dice.percent(30) { UPPER } else { 0 };
        let l4 = if l5 == 0 && self.dice.percent(40) { SHARED } else { PRIVATE };
        let (l3, l2) = (self.dice.pick(&[0, 0, 1]), self.dice.below(4));
        let l1 = self.dice.pick(&HOT);
        self.setting.gva([l5, l4, l3, l2, l1])
    }

    fn page(&mut self) -> u64 {
        if self.dice.percent(70) { self.dice.pick(&self.favourites) } else { self.any_page() }
    }

    fn touch(&mut self) -> Touch {
        #[derive(Clone, Copy)]
        enum Where {
            Word,
            Inside,
            Crossing,
        }
        let size: u8 = self.dice.pick(&[1, 2, 4, 8, 8]);
        let page = self.page();
        let offset =
            match self.dice.weighted(&[(40, Where::Word), (35, Where::Inside), (25, Where::Crossing)]) {
                Where::Word => 8 * self.dice.below(8),
                Where::Inside => self.dice.below(PAGE - 16),
                Where::Crossing => PAGE - self.dice.below(u64::from(size)),
            };
        let kind = self.dice.weighted(&[
            (30, TouchKind::Load),
            (34, TouchKind::Store),
            (8, TouchKind::Add),
            (4, TouchKind::Exchange),
            (3, TouchKind::CompareExchange),
            (3, TouchKind::CompareExchange16),
            (3, TouchKind::Fill(0)),
            (4, TouchKind::Copy(0, 0)),
            (10, TouchKind::Call),
            (3, TouchKind::Patch),
        ]);
        let mut gva = page.wrapping_add(offset);
        let kind = match kind {
            TouchKind::Fill(_) => TouchKind::Fill(self.dice.below(4) as u8),
            TouchKind::Copy(..) => {
                let from = self.page().wrapping_add(self.dice.below(PAGE));
                TouchKind::Copy(self.dice.below(10) as u8, from)
            }
            TouchKind::CompareExchange16 => {
                gva = page.wrapping_add(16 * self.dice.below(PAGE / 16));
                kind
            }
            TouchKind::Call | TouchKind::Patch => {
                gva = page.wrapping_add(8 * self.dice.below(PAGE / 8));
                kind
            }
            kind => kind,
        };
        Touch { kind, gva, size, value: self.dice.roll() }
    }

    fn any_table(&mut self) -> Table {
        // Leaves are edited most.
        let level = self.dice.weighted(&[(60, 1), (22, 2), (10, 3), (6, 4), (2, 5)]);
        let tables: Vec<_> = self.pool.iter().filter(|table| table.level == level).copied().collect();
        if tables.is_empty() { self.any_table() } else { self.dice.pick(&tables) }
    }

    /// Any entry, and its table.
    fn entry(&mut self) -> (Table, u64) {
        if self.dice.percent(50) {
            let page = self.page();
            return self.entry_on_the_way_to(page);
        }
        let table = self.any_table();
        (table, table.address + 8 * self.dice.pick(self.setting.indexes(table.level)))
    }

    /// An entry that the address is translated by, mostly the last one, and its table.
    fn entry_on_the_way_to(&mut self, gva: u64) -> (Table, u64) {
        let path = self.tables.path(self.setting.root(self.space), gva);
        let pool = &self.pool;
        let own = |&entry: &u64| {
            let table = *pool.iter().find(|table| table.address == entry & !(PAGE - 1))?;
            let edited = self.setting.indexes(table.level).contains(&(entry % PAGE / 8));
            edited.then_some((table, entry))
        };
        let own: Vec<_> = path.iter().filter_map(own).collect();
        match own.last() {
            Some(&last) if self.dice.percent(65) => last,
            Some(_) => self.dice.pick(&own),
            None => {
                let table = self.any_table();
                (table, table.address + 8 * self.dice.pick(self.setting.indexes(table.level)))
            }
        }
    }

    fn edit(&mut self, (table, entry): (Table, u64)) -> Edit {
        let bit = |dice: &mut Dice| dice.pick(&[P, W, W, U, A, D, NX, 1 << 9]);
        let change = match self.dice.below(10) {
            0..5 => Change::Set(self.value(table)),
            5..8 => Change::And(!bit(&mut self.dice)),
            _ => Change::Or(bit(&mut self.dice)),
        };
        self.tables.change(entry, change);
        Edit { entry, change, way: self.dice.roll() as u8 }
    }

    fn edits(&mut self, edits: Vec<Edit>) -> Op {
        Op::Edit { edits, flush: Flush { all: self.dice.percent(30), needless: self.dice.percent(40) } }
    }

    /// Any value of an entry.
    fn value(&mut self, table: Table) -> u64 {
        match self.dice.below(100) {
            0..6 => 0,
            // Absent, whatever the other bits say.
            6..11 => self.link_or_leaf(table) & !P,
            11..13 => self.link_or_leaf(table) | 1 << (46 + self.dice.below(6)),
            13..14 if table.level > 1 => self.link_or_leaf(table) | PS,
            // A table where no memory is.
            14..15 if table.level > 1 => (3 * CHUNK) | P | W | U,
            _ => self.link_or_leaf(table),
        }
    }

    fn link_or_leaf(&mut self, table: Table) -> u64 {
        let Table { level, shared, .. } = table;
        let leaf = match level {
            1 => true,
            2 => self.dice.percent(35),
            3 => self.dice.percent(15),
            _ => false,
        };
        let below: Vec<_> = self
            .pool
            .iter()
            .filter(|table| table.level == level - 1 && table.shared == shared)
            .copied()
            .collect();
        let frame = match (leaf, level) {
            (false, _) => self.dice.pick(&below).address,
            (true, 1) => self.frame(),
            (true, 2) => PS | (CHUNK * self.dice.pick(&[0, 0, 1, 1, 1, 2, 2, 3])),
            (true, _) => PS | self.dice.pick(&[0, 0, 1]) << 30,
        };
        let mut value = frame | P;
        // Rights are withheld by leaves more often than by what leads to them: else most accesses would fault.
        let (write, user, no_execute) = if leaf { (78, 75, 20) } else { (95, 94, 3) };
        for (chance, bits) in [(write, W), (user, U), (50, A), (5, CACHING), (10, 1 << 9), (3, IGNORED)] {
            if self.dice.percent(chance) {
                value |= bits;
            }
        }
        if leaf && self.dice.percent(40) {
            value |= D;
        }
        if leaf && shared && self.dice.percent(40) {
            value |= G;
        }
        if self.dice.percent(if self.setting.no_execute { no_execute } else { 2 }) {
            value |= NX;
        }
        value
    }

    /// The guest-physical page of a small leaf.
    fn frame(&mut self) -> u64 {
        let hot = PAGE * self.dice.pick(&HOT);
        match self.dice.below(100) {
            0..38 => hot,
            38..58 => CHUNK + hot,
            58..63 => STUBS,
            63..73 => ROM + PAGE * self.dice.below(3),
            73..85 => SLOTS[ALIAS].gpa + PAGE * self.dice.below(2),
            85..90 => SLOTS[SPARE].gpa,
            90..95 => 3 * CHUNK + hot,
            95..98 => self.dice.pick(&self.pool).address,
            // The last page there is.
            _ => (1 << 46) - PAGE,
        }
    }

    fn host_event(&mut self) -> HostEvent {
        let any = self.dice.weighted(&[(5, 0), (3, LARGE), (1, 2), (2, ALIAS), (1, SPARE)]);
        // What the program cannot do without stays.
        let removable: &[usize] =
            if self.setting.far_tables { &[ALIAS, SPARE] } else { &[ALIAS, SPARE, LARGE] };
        let removable = self.dice.pick(removable);
        let (page, data) = (self.ram_page(), self.data_page());
        let chunk = CHUNK * self.dice.below(2);
        let (first, pages) = match self.dice.below(10) {
            0 => (0, RAM_BYTES / PAGE),
            1 | 2 => (page, 1 + self.dice.below(8).min((RAM_BYTES - page) / PAGE - 1)),
            _ => (page, 1),
        };
        let all = self.dice.percent(50);
        self.dice.weighted(&[
            (10, HostEvent::Replace(any)),
            (8, HostEvent::Remove(removable)),
            (12, HostEvent::Restore(removable)),
            (20, HostEvent::LogOn(any)),
            (6, HostEvent::LogOff(any)),
            (25, HostEvent::Collect(any)),
            (15, HostEvent::SwapOut { first, pages }),
            (15, HostEvent::Migrate { first, pages }),
            (12, HostEvent::Merge(data, (data + CHUNK) % (2 * CHUNK))),
            (6, HostEvent::Collapse(chunk)),
            (4, HostEvent::Split(chunk)),
            (14, HostEvent::Protect { page: data, all }),
            (4, HostEvent::Unprotect(data)),
            (6, HostEvent::Shield(page)),
            (4, HostEvent::Discard(data)),
            (6, HostEvent::Age(any)),
        ])
    }

    /// An offset of a page of RAM that the guest uses.
    fn ram_page(&mut self) -> u64 {
        match self.dice.below(10) {
            0..2 => PAGE * self.dice.below(16),
            2..3 => KERNEL_TABLES + PAGE * self.dice.below(5),
            3..4 => CODE,
            4..7 => self.dice.pick(&self.pool).address,
            7..8 => 2 * CHUNK + PAGE * self.dice.below(4),
            _ => self.data_page(),
        }
    }

    /// An offset of a page of data: often one that a favourite leads to.
    fn data_page(&mut self) -> u64 {
        let page = self.dice.pick(&self.favourites);
        let gpa = self.tables.translate(self.setting.root(self.space), page);
        if let Some(gpa) = gpa.filter(|&gpa| gpa < 2 * CHUNK && may_be_stored_to(gpa))
            && self.dice.percent(60)
        {
            return gpa & !(PAGE - 1);
        }
        CHUNK * self.dice.below(2) + PAGE * self.dice.pick(&HOT)
    }
}
