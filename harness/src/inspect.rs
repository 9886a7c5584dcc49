//! The VMs of another process, as the kernel has them: slots, tables, one address followed, all that is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ept::live::{Kernel, LiveError, LiveLeaf, LiveReport, LiveTables, LiveVm, Pagemap};
use ept::verify::HostPage;
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};
use serde::{Serialize, Serializer};

/// What was found of one VM.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The process.
    pub pid: u32,
    /// The number of the VM among the process's, in the order of their files.
    pub vm: usize,
    /// What its tables are: EPT, NPT or shadow paging.
    pub second_level: String,
    /// The numbers of its vCPUs.
    pub vcpus: Vec<u32>,
    /// Its slots, lowest first.
    pub slots: Vec<SlotView>,
    /// Leaves of 4K, 2M and 1G.
    pub leaves: [u64; 3],
    /// The same as KVM counts them.
    pub counted: [u64; 3],
    /// What else KVM counts, by its own names: faults of all vCPUs (`pf_*`) and what became of tables (`mmu_*`).
    pub counts: BTreeMap<&'static str, u64>,
    /// How many tables there are.
    pub tables: usize,
    /// Bytes of all tables.
    pub table_bytes: usize,
    /// 4 KiB frames of leaves that were compared with the process's.
    pub frames: u64,
    /// What is wrong, a line each.
    pub findings: Vec<String>,
    /// What could not be checked, and how often.
    pub unchecked: Vec<String>,
    /// The address that was asked for.
    pub gpa: Option<GpaView>,
}

/// A slot, and how much of it the tables map.
#[derive(Clone, Debug, Serialize)]
pub struct SlotView {
    /// Its number.
    pub id: u16,
    /// Its address space; 1 is that of system management mode.
    pub space: u8,
    /// Where it lies.
    #[serde(serialize_with = "hex")]
    pub gpa: Gpa,
    /// Its length.
    pub bytes: u64,
    /// Where it lies in the process.
    #[serde(serialize_with = "hex")]
    pub hva: Hva,
    /// Guest writes are MMIO.
    pub readonly: bool,
    /// Writes are logged.
    pub log_dirty: bool,
    /// Its leaves of 4K, 2M and 1G. Shadow paging may map a page more than once.
    pub leaves: [u64; 3],
    /// Why those of 4K and of 2M are no larger, and how many of them.
    pub limits: [BTreeMap<String, u64>; 2],
}

/// One address followed from GPA to HPA.
#[derive(Clone, Debug, Serialize)]
pub struct GpaView {
    /// The address.
    #[serde(serialize_with = "hex")]
    pub gpa: Gpa,
    /// Its slot.
    pub slot: Option<u16>,
    /// By the slot.
    #[serde(serialize_with = "hex_if_any")]
    pub hva: Option<Hva>,
    /// By the process's page map; `None` if nothing is there, or if it does not tell.
    #[serde(serialize_with = "hex_if_any")]
    pub hpa: Option<Hpa>,
    /// The leaves that map it.
    pub leaves: Vec<LeafView>,
}

/// A leaf that maps an address.
#[derive(Clone, Debug, Serialize)]
pub struct LeafView {
    /// Size of its page.
    pub size: String,
    /// Where it has the address.
    #[serde(serialize_with = "hex")]
    pub hpa: Hpa,
    /// What the leaf grants.
    #[serde(serialize_with = "letters_of")]
    pub rights: ept::Rights,
    /// Where the leaf is.
    #[serde(serialize_with = "hex")]
    pub entry_address: Hpa,
    /// Its raw value.
    #[serde(serialize_with = "hex_number")]
    pub entry: u64,
}

/// Looks at a VM that runs: what is wrong in one of them alone has changed between reading tables and page map.
const LOOKS: u32 = 4;

/// Looks at the VMs of a process, or at one of them.
pub fn inspect(
    kernel: &Arc<Kernel>,
    pid: u32,
    vm: Option<usize>,
    gpa: Option<Gpa>,
) -> Result<Vec<Inspection>, LiveError> {
    let vms = LiveVm::of_process(kernel, pid)?.into_iter().enumerate();
    let vms = vms.filter(|(index, _)| vm.is_none_or(|vm| vm == *index));
    let pagemap = Pagemap::of_process(pid)?;
    vms.map(|(index, vm)| Inspection::of(&vm, (pid, index), &pagemap, gpa)).collect()
}

impl Inspection {
    pub(crate) fn of(
        live: &LiveVm,
        (pid, vm): (u32, usize),
        pagemap: &Pagemap,
        gpa: Option<Gpa>,
    ) -> Result<Self, LiveError> {
        let look = || -> Result<(LiveTables, LiveReport), LiveError> {
            let tables = live.tables()?;
            let report = tables.check(pagemap)?;
            Ok((tables, report))
        };
        let (mut tables, mut report) = look()?;
        let mut findings: BTreeSet<String> = report.lines().collect();
        for _ in 1..LOOKS {
            if findings.is_empty() {
                break;
            }
            (tables, report) = look()?;
            let again: BTreeSet<String> = report.lines().collect();
            findings.retain(|finding| again.contains(finding));
        }
        let count = tables.frames().count();
        Ok(Self {
            pid,
            vm,
            second_level: tables.second_level().to_string(),
            vcpus: tables.vcpus().collect(),
            slots: slots(&tables, pagemap),
            leaves: report.leaves,
            counted: tables.counted(),
            counts: tables.counts().collect(),
            tables: count,
            table_bytes: count << PageSize::Size4K.shift(),
            frames: report.frames,
            findings: findings.into_iter().collect(),
            unchecked: unchecked(&report),
            gpa: gpa.map(|gpa| GpaView::of(gpa, &tables, pagemap)).transpose()?,
        })
    }
}

/// What is of interest of a VM that is only looked at: nobody has said what its processors remember, or who owns tables.
fn unchecked(report: &LiveReport) -> Vec<String> {
    use ept::verify::Unchecked::{Caches, NoOwner};
    let leaves =
        [("frames that the host does not tell", report.unknown), ("leaves of nested guests", report.nested)];
    let leaves =
        leaves.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {count}"));
    let trees = report.trees.unchecked.iter().filter(|(why, _)| !matches!(why, Caches | NoOwner));
    leaves.chain(trees.map(|(why, count)| format!("{why}: {count}"))).collect()
}

fn slots(tables: &LiveTables, pagemap: &Pagemap) -> Vec<SlotView> {
    let view = |slot: &ept::live::LiveSlot| SlotView {
        id: slot.id,
        space: slot.space,
        gpa: slot.memslot.base,
        bytes: slot.memslot.bytes,
        hva: slot.memslot.hva,
        readonly: slot.memslot.readonly,
        log_dirty: slot.memslot.log_dirty,
        leaves: [0; 3],
        limits: Default::default(),
    };
    let mut slots: Vec<SlotView> = tables.slots().iter().map(view).collect();
    for (slot, limits) in slots.iter_mut().zip(tables.limits(pagemap)) {
        slot.limits =
            limits.map(|of_size| of_size.iter().map(|(why, count)| (why.to_string(), *count)).collect());
    }
    for leaf in tables.leaves().filter(|leaf| !leaf.nested) {
        let place = (u8::from(leaf.smm), leaf.gpa);
        let after = slots.partition_point(|slot| (slot.space, slot.gpa) <= place);
        if let Some(slot) = slots[..after].last_mut().filter(|slot| {
            slot.space == place.0 && leaf.gpa.checked_sub(slot.gpa).is_some_and(|offset| offset < slot.bytes)
        }) {
            slot.leaves[usize::from(leaf.size.level()) - 1] += 1;
        }
    }
    slots
}

impl GpaView {
    fn of(gpa: Gpa, tables: &LiveTables, pagemap: &Pagemap) -> Result<Self, LiveError> {
        let slots = tables.slots().iter().filter(|slot| slot.space == 0);
        let slot = slots.filter_map(|slot| Some((slot.id, slot.memslot.hva_of(gpa)?))).next();
        let hva = slot.map(|(_, hva)| hva);
        let page = hva.map_or(Ok(HostPage::ABSENT), |hva| pagemap.page(hva))?;
        let offset = gpa.page_offset(PageSize::Size4K);
        let maps = |leaf: &LiveLeaf| {
            !leaf.smm && !leaf.nested && AddrRange::page_of(leaf.gpa, leaf.size).contains(gpa)
        };
        Ok(Self {
            gpa,
            slot: slot.map(|(id, _)| id),
            hva,
            hpa: page.hpa().map(|hpa| Hpa(hpa.raw() | offset)),
            leaves: tables.leaves().filter(maps).map(|leaf| LeafView::of(&leaf, gpa)).collect(),
        })
    }
}

impl LeafView {
    fn of(leaf: &LiveLeaf, gpa: Gpa) -> Self {
        Self {
            size: leaf.size.to_string(),
            hpa: Hpa(leaf.hpa.raw() | gpa.page_offset(leaf.size)),
            rights: leaf.rights,
            entry_address: leaf.entry_address,
            entry: leaf.entry,
        }
    }
}

fn hex<A: memory_model::Address, S: Serializer>(address: &A, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

fn hex_if_any<A: memory_model::Address, S: Serializer>(
    address: &Option<A>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_none(),
    }
}

fn hex_number<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:#x}"))
}

fn letters_of<S: Serializer>(rights: &ept::Rights, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&letters(*rights))
}

/// Read, write and execute, a letter each, or `-`.
pub fn letters(rights: ept::Rights) -> String {
    let letter = |right, letter| if rights.contains(right) { letter } else { '-' };
    [letter(ept::Rights::READ, 'r'), letter(ept::Rights::WRITE, 'w'), letter(ept::Rights::EXEC, 'x')]
        .iter()
        .collect()
}
