//! What a backend works out from a CPU model: the VMs of an engine share one, so it is worked out once.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cpuid::CpuModel;

/// What was derived from the model of the last VM.
#[derive(Debug)]
pub(crate) struct Derived<T>(Mutex<Option<(Arc<CpuModel>, Arc<T>)>>);

impl<T> Default for Derived<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Derived<T> {
    /// What `derive` makes of the model, unless that is known.
    pub(crate) fn of<E>(
        &self,
        model: &Arc<CpuModel>,
        derive: impl FnOnce(&CpuModel) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        // Whoever panicked while it held the lock left a whole value or none.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, derived)) = last.as_ref()
            && Arc::ptr_eq(known, model)
        {
            return Ok(derived.clone());
        }
        let derived = Arc::new(derive(model)?);
        *last = Some((model.clone(), derived.clone()));
        Ok(derived)
    }
}

#[cfg(test)]
mod tests;
