//! One address followed all the way, GVA -> GPA -> HVA -> HPA, with a witness for each link.

use std::fmt;

use ept::{Access, Fault, Flags, Paging, Path, walk};
use guest_tests::Rights;
use memory_model::{AddrRange, FlatView, Gpa, Gva, Hpa, Hva, PageSize};
use slot_manager::{SlotId, SlotRecord, SlotRegistry};
use vcpu::{GuestTables, HostView, SecondLevelLeaf, Witness};

/// The four links of a chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LinkKind {
    /// The guest's own page tables.
    GvaToGpa,
    /// The flat view and the slots.
    GpaToHva,
    /// The host's page tables.
    HvaToHpa,
    /// The second-level leaf that the processor uses.
    SecondLevel,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GvaToGpa => "GVA -> GPA",
            Self::GpaToHva => "GPA -> HVA",
            Self::HvaToHpa => "HVA -> HPA",
            Self::SecondLevel => "second level",
        })
    }
}

/// What a comparison came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Both sides agree.
    Ok,
    /// They do not; this is what each says.
    Wrong(String),
    /// One side could not be had, and why. Never counts as agreement.
    NotChecked(String),
}

/// One comparison on one link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// The link it belongs to.
    pub link: LinkKind,
    /// What is compared.
    pub what: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What is known of a page beforehand, from the manifest. Whatever is `None` is not compared.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Where the guest's tables must lead.
    pub gpa: Option<Gpa>,
    /// The page size in the guest's tables.
    pub guest_page: Option<PageSize>,
    /// The region it must lie in.
    pub region: Option<String>,
    /// Its first eight bytes.
    pub holds: Option<u64>,
    /// The page size of the second level.
    pub leaf_page: Option<PageSize>,
    /// What the guest did there; `None` if it may never have been there: then nothing needs to be there.
    pub access: Option<Rights>,
}

/// The chain of one address, as far as it leads.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Where it starts.
    pub gva: Gva,
    /// The entries of the guest's tables on the way.
    pub guest_walk: Path,
    /// The page size in the guest's tables.
    pub guest_page: Option<PageSize>,
    /// What the guest's read raises, where its tables lead nowhere.
    pub guest_fault: Option<Fault>,
    /// By the guest's tables.
    pub gpa: Option<Gpa>,
    /// The region, by the flat view.
    pub region: Option<String>,
    /// The slot, by the registry.
    pub slot: Option<SlotId>,
    /// By the flat view.
    pub hva: Option<Hva>,
    /// By the host.
    pub hpa: Option<Hpa>,
    /// By the second-level tables.
    pub leaf: Option<SecondLevelLeaf>,
    /// The comparisons made on the way.
    pub checks: Vec<Check>,
}

/// All that a chain is followed through.
pub struct Observer<'a> {
    /// The guest's paging; `None` with paging off.
    pub guest: Option<Paging>,
    /// The view in force.
    pub view: &'a FlatView,
    /// The slots.
    pub slots: &'a SlotRegistry,
    /// What the host shows.
    pub host: &'a dyn HostView,
    /// The ring that the guest is in.
    pub ring: u8,
}

impl Observer<'_> {
    /// Follows `gva` as far as it leads, comparing each link with its witnesses and with what is known.
    pub fn follow(&self, gva: Gva, known: &Known) -> Chain {
        let mut chain = Chain {
            gva,
            guest_walk: Path::default(),
            guest_page: None,
            guest_fault: None,
            gpa: None,
            region: None,
            slot: None,
            hva: None,
            hpa: None,
            leaf: None,
            checks: Vec::new(),
        };
        self.guest_tables(&mut chain, known);
        if let Some(gpa) = chain.gpa {
            self.slots(&mut chain, gpa, known);
        }
        if let Some(hva) = chain.hva {
            self.host_tables(&mut chain, hva, known);
        }
        if let Some(gpa) = chain.gpa {
            self.second_level(&mut chain, gpa, known);
        }
        chain
    }

    fn guest_tables(&self, chain: &mut Chain, known: &Known) {
        let mut note = Notes::on(LinkKind::GvaToGpa, &mut chain.checks);
        let Some(paging) = &self.guest else {
            let gpa = Gpa(chain.gva.0);
            chain.gpa = Some(gpa);
            return note.compare("guest-physical address", known.gpa, gpa);
        };
        let gva = chain.gva.0;
        let read = |access| walk(&GuestTables(self.view), paging, gva, access, Flags::Keep);
        let found = read(Access::READ);
        chain.guest_walk = found.path;
        match found.outcome {
            Ok(leaf) => {
                chain.gpa = Some(Gpa(leaf.address));
                chain.guest_page = Some(leaf.size);
                note.ok("mapped by the guest's tables");
                note.compare("guest-physical address", known.gpa, Gpa(leaf.address));
                note.compare("guest page size", known.guest_page, leaf.size);
                note.allows("rights in the guest's tables", known.access, leaf.rights());
            }
            Err(fault) => {
                let access = if self.ring == 3 { Access::READ.by_user() } else { Access::READ };
                chain.guest_fault = read(access).outcome.err().or(Some(fault));
                if known.access.is_some() {
                    note.wrong(
                        "mapped by the guest's tables",
                        format!("the guest's tables do not map it: {fault}"),
                    );
                }
            }
        }
    }

    fn slots(&self, chain: &mut Chain, gpa: Gpa, known: &Known) {
        let mut note = Notes::on(LinkKind::GpaToHva, &mut chain.checks);
        let range = self.view.find(gpa);
        chain.region = range.map(|range| range.name.to_string());
        chain.hva = range.and_then(|range| range.hva(gpa));
        let Some(hva) = chain.hva else {
            if known.access.is_some() {
                let what = chain.region.as_deref().unwrap_or("a hole");
                note.wrong("memory in the flat view", format!("{gpa} is {what}"));
            }
            return;
        };
        note.ok("memory in the flat view");
        note.compare("region", known.region.as_deref(), chain.region.as_deref().unwrap_or_default());
        let slot = self.slots.by_gpa(gpa);
        chain.slot = slot.map(SlotRecord::id);
        note.equal(
            "slot registry agrees with the flat view",
            hva,
            slot.and_then(|slot| slot.hva_of(gpa)).into(),
        );
        note.equal("kernel's slot agrees with the flat view", hva, self.host.slot_hva(gpa));
        if let (Some(holds), Some(range)) = (known.holds, range) {
            let found = range.ram().zip(range.region_offset(gpa)).map(|(block, offset)| {
                let mut bytes = [0; 8];
                block.read(offset, &mut bytes).map(|()| u64::from_le_bytes(bytes))
            });
            match found {
                Some(Ok(found)) if found == holds => note.ok("content"),
                Some(Ok(found)) => {
                    note.wrong("content", format!("expected {holds:#x}, found {found:#x} at {hva}"))
                }
                Some(Err(error)) => note.wrong("content", error.to_string()),
                None => note.wrong("content", format!("{hva} is no memory")),
            }
        }
    }

    fn host_tables(&self, chain: &mut Chain, hva: Hva, known: &Known) {
        let mut note = Notes::on(LinkKind::HvaToHpa, &mut chain.checks);
        match self.host.frame(hva) {
            Witness::Seen(hpa) => {
                chain.hpa = Some(hpa);
                note.ok("the host has a frame");
            }
            // A page that nobody is known to have touched need not be there.
            Witness::Absent if known.access.is_none() => {}
            Witness::Absent => note.wrong("the host has a frame", format!("no frame is behind {hva}")),
            Witness::NotShown(why) => note.not_checked("the host has a frame", why.into_owned()),
        }
    }

    fn second_level(&self, chain: &mut Chain, gpa: Gpa, known: &Known) {
        let mut note = Notes::on(LinkKind::SecondLevel, &mut chain.checks);
        let leaf = match self.host.leaf(chain.gva, gpa) {
            Witness::Seen(leaf) => leaf,
            Witness::Absent if known.access.is_none() => return,
            Witness::Absent if self.host.bypasses_tables(self.ring) => {
                let why = format!("this machine interprets ring {}, which takes no leaf", self.ring);
                return note.not_checked("mapped by the second level", why);
            }
            Witness::Absent => {
                return note.wrong("mapped by the second level", format!("no leaf maps {gpa}"));
            }
            Witness::NotShown(why) => {
                return note.not_checked("mapped by the second level", why.into_owned());
            }
        };
        note.ok("mapped by the second level");
        match chain.hpa {
            Some(hpa) => note.equal("frame", hpa, Witness::Seen(leaf.hpa)),
            None => note.not_checked("frame", "the host's own frame is not known".to_owned()),
        }
        note.allows("rights in the second level", known.access, leaf.rights);
        if let Some(access) = known.access {
            // The other way round it need not hold: KVM sets flags in what it maps ahead (rule S4).
            note.flag("accessed flag in the second level", !access.is_empty(), leaf.accessed, leaf.entry);
            note.flag("dirty flag in the second level", access.write, leaf.written, leaf.entry);
        }
        match (known.leaf_page, chain.hva) {
            (Some(size), Some(hva)) if leaf.size < size && !self.has_frame_of(size, hva) => {
                note.not_checked(
                    "page size of the second level",
                    format!("the host has given no page of {size}"),
                );
            }
            (size, _) => note.compare("page size of the second level", size, leaf.size),
        }
        if let Some(range) = self.view.find(gpa) {
            if range.readonly && leaf.rights.contains(ept::Rights::WRITE) {
                note.wrong(
                    "read-only memory is not writable",
                    format!("the leaf {:#x} of {gpa} allows writes", leaf.entry),
                );
            } else if range.readonly {
                note.ok("read-only memory is not writable");
            }
            let page = AddrRange::page_of(gpa, leaf.size);
            match range.range.covers(page) {
                true => note.ok("page inside its range"),
                false => note.wrong("page inside its range", format!("{page} is not inside {}", range.range)),
            }
        }
        chain.leaf = Some(leaf);
    }

    /// Whether the frames of the host's page around `hva` are those of one page of that size.
    fn has_frame_of(&self, size: PageSize, hva: Hva) -> bool {
        let first = hva.align_down(size);
        let Witness::Seen(frame) = self.host.frame(first) else { return false };
        let behind = |offset| (first.checked_add(offset), frame.checked_add(offset));
        let follows = |(hva, frame): (Option<Hva>, Option<Hpa>)| match (hva, frame) {
            (Some(hva), Some(frame)) => self.host.frame(hva) == Witness::Seen(frame),
            _ => false,
        };
        let small = PageSize::Size4K.bytes() as usize;
        frame.is_aligned(size) && (0..size.bytes()).step_by(small).map(behind).all(follows)
    }
}

/// Adds checks to one link.
struct Notes<'a> {
    link: LinkKind,
    checks: &'a mut Vec<Check>,
}

impl<'a> Notes<'a> {
    fn on(link: LinkKind, checks: &'a mut Vec<Check>) -> Self {
        Self { link, checks }
    }

    fn note(&mut self, what: &'static str, outcome: Outcome) {
        self.checks.push(Check { link: self.link, what, outcome });
    }

    fn ok(&mut self, what: &'static str) {
        self.note(what, Outcome::Ok);
    }

    fn wrong(&mut self, what: &'static str, how: String) {
        self.note(what, Outcome::Wrong(how));
    }

    fn not_checked(&mut self, what: &'static str, why: String) {
        self.note(what, Outcome::NotChecked(why));
    }

    /// Compares what is known, if it is, with what was found.
    fn compare<T: PartialEq + fmt::Display>(&mut self, what: &'static str, known: Option<T>, found: T) {
        match known {
            None => {}
            Some(known) if known == found => self.ok(what),
            Some(known) => self.wrong(what, format!("expected {known}, found {found}")),
        }
    }

    /// Compares what one side says with what a witness says.
    fn equal<T: PartialEq + fmt::Display>(&mut self, what: &'static str, expected: T, witness: Witness<T>) {
        match witness {
            Witness::Seen(found) => self.compare(what, Some(expected), found),
            Witness::Absent => self.wrong(what, format!("expected {expected}, found nothing")),
            Witness::NotShown(why) => self.not_checked(what, why.into_owned()),
        }
    }

    /// Checks that a flag is set, if it has to be, and if there is one.
    fn flag(&mut self, what: &'static str, wanted: bool, set: Option<bool>, entry: u64) {
        match (wanted, set) {
            (true, Some(false)) => self.wrong(what, format!("the leaf {entry:#x} does not have it")),
            (true, Some(true)) => self.ok(what),
            _ => {}
        }
    }

    /// Checks that what the guest did is allowed.
    fn allows(&mut self, what: &'static str, access: Option<Rights>, rights: ept::Rights) {
        let Some(access) = access else { return };
        let held = Rights {
            read: rights.contains(ept::Rights::READ),
            write: rights.contains(ept::Rights::WRITE),
            execute: rights.contains(ept::Rights::EXEC),
        };
        let enough =
            (held.read || !access.read) && (held.write || !access.write) && (held.execute || !access.execute);
        match enough {
            true => self.ok(what),
            false => self.wrong(what, format!("the guest did {access}, the entry allows {held}")),
        }
    }
}
