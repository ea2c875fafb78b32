//! Ends a guest that does not exit by itself, so that an engine that loops fails a check instead of stopping the suite.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vellum_backend::{Exit, Interrupter, VmError};

use crate::failure::{Failure, Result};

/// No guest of the suite runs longer than some milliseconds; emulators of whole machines are a thousand times slower.
const PATIENCE: Duration = Duration::from_secs(20);
const GLANCE: Duration = Duration::from_millis(500);
/// Enough for a guest that exits at all.
const MOMENT: Duration = Duration::from_millis(50);

type Exited = std::result::Result<Exit, VmError>;

/// A thread that looks at one vCPU now and then.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    interrupter: Arc<dyn Interrupter>,
    watch: Mutex<Watch>,
    changed: Condvar,
}

#[derive(Default)]
struct Watch {
    /// When the current run must be over.
    deadline: Option<Instant>,
    has_fired: bool,
    is_over: bool,
}

impl Watchdog {
    pub(super) fn new(interrupter: Arc<dyn Interrupter>) -> Self {
        let shared = Arc::new(Shared {
            interrupter,
            watch: Mutex::new(Watch::default()),
            changed: Condvar::new(),
        });
        let watched = shared.clone();
        Self {
            shared,
            thread: Some(std::thread::spawn(move || watched.look())),
        }
    }

    /// Runs the vCPU.
    #[track_caller]
    pub(super) fn guard(&self, run: impl FnOnce() -> Exited) -> Result<Exit> {
        let (exit, has_fired) = self.watch(PATIENCE, run);
        match exit {
            Ok(Exit::Interrupted) if has_fired => Err(Failure::new("the guest did not exit")),
            Ok(exit) => Ok(exit),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs the vCPU, and interrupts it after a moment.
    pub(super) fn end_soon(&self, run: impl FnOnce() -> Exited) -> Exited {
        self.watch(MOMENT, run).0
    }

    /// Runs the vCPU; says whether it had to be interrupted.
    fn watch(&self, patience: Duration, run: impl FnOnce() -> Exited) -> (Exited, bool) {
        self.shared.interrupter.enter();
        self.shared.lock().deadline = Some(Instant::now() + patience);
        self.shared.changed.notify_all();
        let exit = run();
        let has_fired = {
            let mut watch = self.shared.lock();
            watch.deadline = None;
            std::mem::take(&mut watch.has_fired)
        };
        self.shared.interrupter.leave();
        (exit, has_fired)
    }
}

impl Shared {
    fn look(&self) {
        let mut watch = self.lock();
        while !watch.is_over {
            if watch.deadline.is_some_and(|at| at <= Instant::now()) {
                watch.has_fired = true;
                // The vCPU's thread takes the lock before it leaves its run, so it is alive.
                self.interrupter.interrupt();
            }
            let pause = watch.deadline.map_or(GLANCE, |at| {
                at.saturating_duration_since(Instant::now())
                    .clamp(MOMENT, GLANCE)
            });
            watch = self
                .changed
                .wait_timeout(watch, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watchdog")
    }
}
