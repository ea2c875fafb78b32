//! The thread of a pool: it makes, heals and tears down, so that nobody who takes or gives back has to.

use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use super::Shared;
use crate::sandbox::Sandbox;

/// Work for the keeper.
pub(super) enum Order {
    /// Fewer sandboxes are parked than should be.
    Refill,
    /// The sandbox's last call went wrong: restore it.
    Heal(Box<Sandbox>),
    /// The sandbox is one too many, or lost.
    TearDown(Box<Sandbox>),
    /// The pool is gone.
    Stop,
}

impl Order {
    pub(super) const fn holds_sandbox(&self) -> bool {
        matches!(self, Self::Heal(_) | Self::TearDown(_))
    }
}

/// Starts the keeper. It ends with the pool.
pub(super) fn start(shared: &Arc<Shared>, inbox: Receiver<Order>) -> io::Result<JoinHandle<()>> {
    // Weakly, because sandboxes that are taken keep what they share with the pool alive.
    let shared = Arc::downgrade(shared);
    thread::Builder::new()
        .name("vellum-pool".into())
        .spawn(move || keep(&shared, &inbox))
}

fn keep(shared: &Weak<Shared>, inbox: &Receiver<Order>) {
    while let Ok(order) = inbox.recv() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match order {
            Order::Refill => refill(&shared),
            Order::Heal(sandbox) => heal(&shared, *sandbox),
            Order::TearDown(sandbox) => {
                drop(sandbox);
                shared.forget();
                // There may be one more now.
                shared.order_refill();
            }
            Order::Stop => return shut_down(&shared, inbox),
        }
    }
}

fn refill(shared: &Shared) {
    shared
        .is_refill_ordered
        .store(false, std::sync::atomic::Ordering::Relaxed);
    if let Err(error) = shared.fill() {
        // Whoever takes next makes a sandbox itself and sees the error.
        tracing::warn!(target: "vellum::pool", ?error, "the pool could not be refilled");
    }
}

fn heal(shared: &Shared, mut sandbox: Sandbox) {
    match shared.renew(&mut sandbox) {
        Ok(()) => {
            shared.counters.healed.add();
            shared.park(sandbox);
        }
        Err(error) => shared.discard(sandbox, &error),
    }
}

/// Drops what is parked and what was ordered before the end.
fn shut_down(shared: &Shared, inbox: &Receiver<Order>) {
    while shared.parked.pop().is_some() {
        shared.forget();
    }
    while let Ok(order) = inbox.try_recv() {
        if order.holds_sandbox() {
            shared.forget();
        }
    }
}
