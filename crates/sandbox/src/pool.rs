//! A pool: sandboxes of one snapshot that are ready before they are needed.

mod keeper;
mod metrics;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crossbeam_queue::ArrayQueue;

use crate::engine::Engine;
use crate::error::{Error, Failure};
use crate::host::HostFunctions;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

use keeper::Order;
use metrics::Counters;

pub use metrics::PoolMetrics;

/// Ready sandboxes of one snapshot: take one, use it, give it back by dropping it.
///
/// A sandbox that is given back is restored on the thread that drops it, which costs what its guest changed. One whose last call went
/// wrong is healed in the background. A thread of the pool keeps as many ready as was asked for, and tears down what is too many. Taking
/// and giving back take no lock.
///
/// ```no_run
/// use vellum_sandbox::{Engine, GuestImage, HostFunctions, Pool, Sandbox};
///
/// let engine = Engine::new()?;
/// let image = GuestImage::from_file("guest.elf")?;
/// let ready = Sandbox::builder(&image).build(&engine)?.snapshot()?;
/// let pool = Pool::builder(&engine, &ready, &HostFunctions::new()).ready(8).build()?;
/// let mut sandbox = pool.take()?;
/// let sum: i32 = sandbox.call("add", (40, 2))?;
/// drop(sandbox); // back into the pool, as good as new
/// # Ok::<(), vellum_sandbox::Error>(())
/// ```
pub struct Pool {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

/// What a pool is made with.
#[derive(Clone, Debug)]
pub struct PoolBuilder {
    engine: Engine,
    snapshot: Snapshot,
    host: HostFunctions,
    ready: usize,
    max_live: usize,
}

/// What the users of a pool, its sandboxes and its keeper share.
struct Shared {
    engine: Engine,
    snapshot: Snapshot,
    host: HostFunctions,
    /// Restored sandboxes. Its capacity is the number of them that are kept.
    parked: ArrayQueue<Sandbox>,
    /// Sandboxes that exist, parked or taken, and those that are being made.
    live: AtomicUsize,
    max_live: usize,
    /// Whether the keeper was told that sandboxes are missing and has not looked yet.
    is_refill_ordered: AtomicBool,
    /// Whether the pool is gone, so that nothing is parked any more.
    is_closed: AtomicBool,
    counters: Counters,
    orders: Sender<Order>,
}

/// A sandbox that goes back into its pool when it is dropped.
pub struct PooledSandbox {
    /// Empty only while it is dropped.
    sandbox: Option<Sandbox>,
    /// The number of the sandbox that was taken. A user can exchange it for one of its own, which nobody else must get.
    number: u64,
    shared: Arc<Shared>,
}

impl PoolBuilder {
    /// How many sandboxes wait to be taken: 1 to 65,536. The default is 4.
    #[must_use]
    pub const fn ready(mut self, count: usize) -> Self {
        self.ready = count;
        self
    }

    /// How many sandboxes may exist at the same time, taken ones included. At least as many as wait; the default is 1,024.
    #[must_use]
    pub const fn max_live(mut self, count: usize) -> Self {
        self.max_live = count;
        self
    }

    /// Makes the pool and its first sandboxes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for numbers that make no pool; else as
    /// [`Sandbox::from_snapshot`].
    pub fn build(self) -> Result<Pool, Error> {
        const MAX_READY: usize = 1 << 16;
        if self.ready == 0 || self.ready > MAX_READY || self.max_live < self.ready {
            return Err(Failure::PoolSize {
                ready: self.ready,
                max_live: self.max_live,
            }
            .into());
        }
        let (orders, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            engine: self.engine,
            snapshot: self.snapshot,
            host: self.host,
            parked: ArrayQueue::new(self.ready),
            live: AtomicUsize::new(0),
            max_live: self.max_live,
            is_refill_ordered: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            counters: Counters::default(),
            orders,
        });
        shared.fill()?;
        let keeper = keeper::start(&shared, inbox).map_err(Failure::Memory)?;
        Ok(Pool {
            shared,
            keeper: Some(keeper),
        })
    }
}

impl Pool {
    /// Begins to make a pool of sandboxes of a snapshot.
    pub fn builder(engine: &Engine, snapshot: &Snapshot, host: &HostFunctions) -> PoolBuilder {
        PoolBuilder {
            engine: engine.clone(),
            snapshot: snapshot.clone(),
            host: host.clone(),
            ready: 4,
            max_live: 1024,
        }
    }

    /// Takes a sandbox. When none is ready, makes one, if there may be one more.
    ///
    /// # Errors
    /// [`ErrorKind::PoolExhausted`](crate::ErrorKind::PoolExhausted) when none is ready and there are as many as there may be, counting
    /// those that the pool's thread is making, healing or tearing down at the moment; else as
    /// [`Sandbox::from_snapshot`].
    pub fn take(&self) -> Result<PooledSandbox, Error> {
        let sandbox = match self.shared.parked.pop() {
            Some(sandbox) => sandbox,
            None => self.shared.make_on_demand()?,
        };
        self.shared.counters.taken.add();
        self.shared.order_refill();
        Ok(PooledSandbox {
            number: sandbox.number(),
            sandbox: Some(sandbox),
            shared: self.shared.clone(),
        })
    }

    /// What the pool has done, and how it stands.
    pub fn metrics(&self) -> PoolMetrics {
        let (parked, live) = (
            self.shared.parked.len(),
            self.shared.live.load(Ordering::Relaxed),
        );
        self.shared.counters.read(parked, live)
    }
}

impl Drop for Pool {
    /// Ends the keeper and drops the sandboxes that wait. Those that are taken live until they are dropped.
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        // Fails only when the keeper has ended already.
        let _ = self.shared.orders.send(Order::Stop);
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked has nothing left to do either.
            let _ = keeper.join();
        }
    }
}

impl Shared {
    /// Makes sandboxes until enough are parked, or there are as many as there may be.
    fn fill(&self) -> Result<(), Error> {
        while !self.parked.is_full() && self.reserve() {
            let sandbox = self.make()?;
            self.park(sandbox);
        }
        Ok(())
    }

    /// Counts one more sandbox, if there may be one.
    fn reserve(&self) -> bool {
        let one_more = |live| (live < self.max_live).then_some(live + 1);
        self.live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }

    /// Makes a sandbox that is counted already; when that fails it counts no more.
    fn make(&self) -> Result<Sandbox, Error> {
        let made = Sandbox::from_snapshot(&self.engine, &self.snapshot, &self.host);
        match &made {
            Ok(_) => self.counters.made.add(),
            Err(_) => self.forget(),
        }
        made
    }

    fn make_on_demand(&self) -> Result<Sandbox, Error> {
        if !self.reserve() {
            // One may have come back meanwhile.
            return self.parked.pop().ok_or_else(|| {
                Failure::PoolExhausted {
                    max_live: self.max_live,
                }
                .into()
            });
        }
        self.counters.missed.add();
        self.make()
    }

    fn forget(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Parks a restored sandbox, or has it torn down when enough are.
    fn park(&self, sandbox: Sandbox) {
        if let Err(sandbox) = self.parked.push(sandbox) {
            self.order(Order::TearDown(Box::new(sandbox)));
        }
    }

    /// Restores a sandbox and parks it; one whose restore takes long is left to the keeper.
    fn give_back(&self, mut sandbox: Sandbox) {
        self.counters.returned.add();
        if self.is_closed.load(Ordering::Relaxed) {
            return self.forget();
        }
        if sandbox.is_dirty() {
            return self.order(Order::Heal(Box::new(sandbox)));
        }
        match self.renew(&mut sandbox) {
            Ok(()) => self.park(sandbox),
            Err(error) => self.discard(sandbox, &error),
        }
    }

    /// Makes a sandbox as good as new.
    fn renew(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        sandbox.clear_for_reuse()?;
        sandbox.restore(&self.snapshot)
    }

    /// Drops a sandbox that cannot be restored.
    fn discard(&self, sandbox: Sandbox, why: &dyn fmt::Debug) {
        tracing::warn!(target: "vellum::pool", ?why, "a sandbox cannot be used again and is dropped");
        self.counters.lost.add();
        self.order(Order::TearDown(Box::new(sandbox)));
    }

    fn order_refill(&self) {
        if !self.parked.is_full() && !self.is_refill_ordered.swap(true, Ordering::Relaxed) {
            self.order(Order::Refill);
        }
    }

    /// Hands work to the keeper. Without one, because the pool is being dropped, a sandbox in the order is dropped here.
    fn order(&self, order: Order) {
        if let Err(mpsc::SendError(order)) = self.orders.send(order)
            && order.holds_sandbox()
        {
            self.forget();
        }
    }
}

impl Deref for PooledSandbox {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        match &self.sandbox {
            Some(sandbox) => sandbox,
            None => unreachable!("the sandbox is taken out by `drop` only"),
        }
    }
}

impl DerefMut for PooledSandbox {
    fn deref_mut(&mut self) -> &mut Sandbox {
        match &mut self.sandbox {
            Some(sandbox) => sandbox,
            None => unreachable!("the sandbox is taken out by `drop` only"),
        }
    }
}

impl Drop for PooledSandbox {
    fn drop(&mut self) {
        let Some(sandbox) = self.sandbox.take() else {
            return;
        };
        if sandbox.number() == self.number {
            self.shared.give_back(sandbox);
        } else {
            self.shared
                .discard(sandbox, &"it is not the one that was taken");
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("metrics", &self.metrics())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PooledSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sandbox.fmt(f)
    }
}
