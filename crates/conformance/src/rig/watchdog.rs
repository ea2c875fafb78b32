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
    pub(super) fn guard(
        &self,
        run: impl FnOnce() -> std::result::Result<Exit, VmError>,
    ) -> Result<Exit> {
        self.shared.interrupter.enter();
        self.shared.lock().deadline = Some(Instant::now() + PATIENCE);
        let exit = run();
        let has_fired = {
            let mut watch = self.shared.lock();
            watch.deadline = None;
            std::mem::take(&mut watch.has_fired)
        };
        self.shared.interrupter.leave();
        match exit {
            Ok(Exit::Interrupted) if has_fired => Err(Failure::new("the guest did not exit")),
            Ok(exit) => Ok(exit),
            Err(error) => Err(error.into()),
        }
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
            watch = self
                .changed
                .wait_timeout(watch, GLANCE)
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
