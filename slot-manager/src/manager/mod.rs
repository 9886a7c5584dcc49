//! The listener that keeps a VM's slots in step with an address space.

mod convert;
mod dirty;

use std::any::Any;
use std::mem;

use memory_model::{AddrRange, DirtyClients, DirtySync, FlatRange, Gpa, MemoryListener, Refusal};

use crate::dirty::Unread;
use crate::{
    DirtyMethod, Errno, SlotError, SlotExecutor, SlotFlags, SlotOp, SlotPlan, SlotRegistry, plan, plan_change,
};

/// Turns the changes of an [`AddressSpace`](memory_model::AddressSpace) into slot operations (QEMU's
/// `KVMMemoryListener`): queues them during a transaction, plans at its end, and carries the plan out wholly
/// or not at all.
///
/// It keeps every slot in its registry, and each slot keeps its memory mapped, as long as the kernel may use
/// it. A slot is logged while anybody logs its range (rule R5), and what was logged is never lost to a slot that
/// goes: its log is read first (rule R9).
pub struct SlotManager<E> {
    executor: E,
    registry: SlotRegistry,
    unread: Unread,
    pause: Option<Pause>,
    queue: Queue,
    /// An undo failed: the registry shows what stands, which is neither the old view nor the new one.
    torn: bool,
}

/// Stops the vCPUs; they go on when the guard is dropped.
type Pause = Box<dyn FnMut() -> Box<dyn Any> + Send>;

/// What a transaction has told so far, both ascending.
#[derive(Default)]
struct Queue {
    gone: Vec<AddrRange<Gpa>>,
    new: Vec<FlatRange>,
}

impl<E: SlotExecutor> SlotManager<E> {
    /// A manager of a VM that has no slots yet.
    pub fn new(executor: E) -> Self {
        let (registry, unread, queue) = Default::default();
        Self { executor, registry, unread, pause: None, queue, torn: false }
    }

    /// Has `pause` called before a plan that needs it (rule R8). When it returns, no vCPU runs, and none does so
    /// until its answer is dropped. Without one vCPUs must not run while the view changes.
    ///
    /// It is called with the manager's lock held: a vCPU that is stopped must not wait for that.
    pub fn pause_by<G: 'static>(&mut self, mut pause: impl FnMut() -> G + Send + 'static) {
        self.pause = Some(Box::new(move || Box::new(pause())));
    }

    /// The slots as they stand.
    pub fn registry(&self) -> &SlotRegistry {
        &self.registry
    }

    /// Who carries the operations out.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    fn execute(&mut self, plan: &SlotPlan) -> Result<(), SlotError> {
        let _paused = plan.needs_pause.then(|| self.pause.as_mut().map(|pause| pause()));
        for (done, op) in plan.ops.iter().enumerate() {
            if let Err(cause) = self.step(op) {
                return Err(self.undo(&plan.ops[..done], cause));
            }
        }
        plan.ops.iter().filter(|op| ends_log(op)).for_each(|op| self.unread.forget(op.slot().id));
        Ok(())
    }

    /// One operation, in the registry and in the kernel, or in neither.
    fn step(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        if ends_log(op) {
            self.read_log(op.slot().gpa)?;
        }
        if !self.registry.apply(op) {
            // Only a torn registry gets here: the room is still taken by what could not be undone.
            return Err(SlotError::refused(op, Errno::EEXIST));
        }
        self.executor.execute(op).inspect_err(|_| {
            self.registry.apply(&op.inverse());
        })?;
        if matches!(op, SlotOp::Delete(_)) {
            self.unread.rescue(op.slot());
        }
        Ok(())
    }

    /// Takes back what was done, last first, and goes on where one step fails: the more is as it was, the
    /// better.
    fn undo(&mut self, done: &[SlotOp], cause: SlotError) -> SlotError {
        let mut standing = Vec::new();
        for op in done.iter().rev() {
            if let Err(error) = self.step(&op.inverse()) {
                standing.push((op.clone(), error));
            }
        }
        if standing.is_empty() {
            return cause;
        }
        self.torn = true;
        SlotError::Torn { cause: Box::new(cause), standing }
    }

    /// The loggers of a range have changed. One that was just told of, as all of it is when we are registered or
    /// torn, says by itself who logs it.
    fn relog(&mut self, range: &FlatRange) {
        if self.queue.new.last().is_none_or(|told| told.range != range.range) {
            self.queue.gone.push(range.range);
            self.queue.new.push(range.clone());
        }
    }
}

/// Whether the kernel drops the slot's log.
fn ends_log(op: &SlotOp) -> bool {
    let logged = |flags: SlotFlags| flags.contains(SlotFlags::LOG_DIRTY_PAGES);
    match op {
        SlotOp::Delete(slot) => logged(slot.flags),
        SlotOp::SetFlags { slot, flags } => logged(slot.flags) && !logged(*flags),
        SlotOp::Create(_) | SlotOp::Move { .. } => false,
    }
}

impl<E: SlotExecutor> MemoryListener for SlotManager<E> {
    fn name(&self) -> &str {
        "slots"
    }

    fn wants_nops(&self) -> bool {
        self.torn
    }

    fn begin(&mut self) {
        self.queue = Queue::default();
    }

    fn region_del(&mut self, range: &FlatRange) {
        self.queue.gone.push(range.range);
    }

    fn region_nop(&mut self, range: &FlatRange) {
        // What did not change needs a look only because the slots are not those of the old view.
        self.queue.new.push(range.clone());
    }

    fn region_add(&mut self, range: &FlatRange) {
        self.queue.new.push(range.clone());
    }

    fn log_start(&mut self, range: &FlatRange, old: DirtyClients, _new: DirtyClients) {
        if old.is_empty() {
            self.relog(range);
        }
    }

    fn log_stop(&mut self, range: &FlatRange, _old: DirtyClients, new: DirtyClients) {
        if new.is_empty() {
            self.relog(range);
        }
    }

    fn commit(&mut self) -> Result<(), Refusal> {
        let Queue { gone, new } = mem::take(&mut self.queue);
        let gone = if self.torn { vec![plan::everything()] } else { gone };
        let plan = plan_change(&self.registry, &gone, &new, &self.executor.limits())?;
        self.execute(&plan)?;
        self.torn = false;
        Ok(())
    }

    fn dirty_sync(&self) -> DirtySync {
        match self.executor.dirty_method() {
            DirtyMethod::Bitmap | DirtyMethod::ManualProtect { .. } => DirtySync::Ranges,
            DirtyMethod::Ring { .. } => DirtySync::Global,
        }
    }

    fn log_sync(&mut self, range: &FlatRange) {
        self.sync_range(range);
    }

    fn log_sync_global(&mut self, _last_stage: bool) {
        self.sync_all();
    }

    fn log_clear(&mut self, part: &FlatRange) {
        self.clear_range(part.range);
    }
}
