//! The thread that a polled guest runs on.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vellum_backend::{Exit, Vm, VmError};

use super::interrupter::PollingInterrupter;

/// The thread, and how a VM goes there and comes back.
#[derive(Debug)]
pub(super) struct Runner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    place: Mutex<Place>,
    changed: Condvar,
    /// Whether the VM has left its guest, so that one can look without a lock.
    has_left: AtomicBool,
    interrupter: Arc<PollingInterrupter>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// What there is for whom.
enum Place {
    /// Nothing: the VM is with its owner, or runs.
    Empty,
    /// A VM to run.
    ToRun(Box<dyn Vm>),
    /// A VM that has left its guest.
    Left(Box<dyn Vm>, Result<Exit, VmError>),
    /// The thread is to end.
    End,
}

impl Runner {
    pub(super) fn start(interrupter: Arc<PollingInterrupter>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            place: Mutex::new(Place::Empty),
            changed: Condvar::new(),
            has_left: AtomicBool::new(false),
            interrupter,
        });
        let copy = shared.clone();
        let thread = std::thread::Builder::new().name("vellum-polled".into());
        Ok(Self {
            shared,
            thread: Some(thread.spawn(move || copy.serve())?),
        })
    }

    /// Has the thread enter the guest.
    pub(super) fn send(&self, vm: Box<dyn Vm>) {
        self.shared.has_left.store(false, Ordering::Relaxed);
        self.shared.interrupter.forget_kick();
        self.shared.put(Place::ToRun(vm));
    }

    /// Whether [`wait`](Self::wait) would return at once.
    #[inline]
    pub(super) fn has_left(&self) -> bool {
        self.shared.has_left.load(Ordering::Acquire)
    }

    /// Waits until the guest is left.
    pub(super) fn wait(&self) -> (Box<dyn Vm>, Result<Exit, VmError>) {
        let mut place = self.shared.lock();
        loop {
            match std::mem::replace(&mut *place, Place::Empty) {
                Place::Left(vm, exit) => return (vm, exit),
                other => *place = other,
            }
            place = self
                .shared
                .changed
                .wait(place)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Runner {
    /// The VM must be with its owner.
    fn drop(&mut self) {
        self.shared.put(Place::End);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, place: Place) {
        *self.lock() = place;
        self.changed.notify_all();
    }

    fn serve(&self) {
        loop {
            let mut place = self.lock();
            let mut vm = loop {
                match std::mem::replace(&mut *place, Place::Empty) {
                    Place::ToRun(vm) => break vm,
                    Place::End => return,
                    other => *place = other,
                }
                place = self
                    .changed
                    .wait(place)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(place);
            let exit = self.run(vm.as_mut());
            self.put(Place::Left(vm, exit));
            self.has_left.store(true, Ordering::Release);
        }
    }

    /// Enters the guest until it leaves for a reason.
    fn run(&self, vm: &mut dyn Vm) -> Result<Exit, VmError> {
        loop {
            self.interrupter.begin();
            let exit = vm.run();
            let was_wanted = self.interrupter.end();
            // A signal that is not ours, or an interruption that was withdrawn.
            if !matches!(exit, Ok(Exit::Interrupted)) || was_wanted {
                return exit;
            }
        }
    }
}
