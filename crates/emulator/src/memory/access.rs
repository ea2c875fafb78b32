//! Loads and stores at linear addresses: through the TLB, else by a walk.

use super::paging::{Intent, Rights, next_page};
use super::tlb::Allowed;
use super::{Cell, Host, PAGE_LEN_BYTES};
use crate::cpu::Cpu;
use crate::trap::Trap;
use crate::width::Width;

impl Cpu {
    /// Loads a number.
    #[inline]
    pub(crate) fn load<W: Width + Cell>(&mut self, linear: u64) -> Result<u64, Trap> {
        if let Some(host) = self.tlb.read(linear)
            && let Some(value) = W::load(host)
        {
            return Ok(value);
        }
        self.load_slowly(linear, W::BYTES)
    }

    /// Stores a number.
    #[inline]
    pub(crate) fn store<W: Width + Cell>(&mut self, linear: u64, value: u64) -> Result<(), Trap> {
        if let Some(host) = self.tlb.write(linear)
            && W::store(host, value).is_some()
        {
            return Ok(());
        }
        self.store_slowly(linear, value, W::BYTES)
    }

    /// Replaces a number by what `change` makes of it. Every fault comes before `change`, which may be called again when another thread
    /// wrote the number in between.
    #[inline]
    pub(crate) fn update<W: Width + Cell>(
        &mut self,
        linear: u64,
        locked: bool,
        mut change: impl FnMut(&mut Self, u64) -> u64,
    ) -> Result<(), Trap> {
        let host = match self.tlb.write(linear) {
            Some(host) => host,
            None => self.resolve(linear, Intent::Write)?,
        };
        if locked && let Some(mut old) = W::load(host) {
            let flags = self.flags;
            loop {
                self.flags = flags;
                let new = change(self, old);
                match W::compare_exchange(host, old, new) {
                    Some(Ok(())) => return Ok(()),
                    Some(Err(now)) => old = now,
                    None => break,
                }
            }
        }
        if let Some(old) = W::load(host) {
            let new = change(self, old);
            let _ = W::store(host, new);
            return Ok(());
        }
        self.resolve(self.wrap(next_page(linear)), Intent::Write)?;
        let old = self.load_slowly(linear, W::BYTES)?;
        let new = change(self, old);
        self.store_slowly(linear, new, W::BYTES)
    }

    /// Loads 16 bytes.
    pub(crate) fn load_wide(&mut self, linear: u64) -> Result<u128, Trap> {
        let low = self.load::<u64>(linear)?;
        let high = self.load::<u64>(self.wrap(linear.wrapping_add(8)))?;
        Ok(u128::from(low) | u128::from(high) << 64)
    }

    /// Stores 16 bytes, or none.
    pub(crate) fn store_wide(&mut self, linear: u64, value: u128) -> Result<(), Trap> {
        let high_at = self.wrap(linear.wrapping_add(8));
        self.check_writable(linear, 16)?;
        self.store::<u64>(linear, value as u64)?;
        self.store::<u64>(high_at, (value >> 64) as u64)
    }

    /// Faults unless all of `len_bytes`, a page at most, can be written.
    pub(crate) fn check_writable(&mut self, linear: u64, len_bytes: u64) -> Result<(), Trap> {
        self.check(linear, len_bytes, Intent::Write)
    }

    /// Faults unless all of `len_bytes`, a page at most, can be accessed.
    pub(crate) fn check(
        &mut self,
        linear: u64,
        len_bytes: u64,
        intent: Intent,
    ) -> Result<(), Trap> {
        self.host_of(linear, intent)?;
        if linear % PAGE_LEN_BYTES + len_bytes > PAGE_LEN_BYTES {
            self.host_of(self.wrap(next_page(linear)), intent)?;
        }
        Ok(())
    }

    /// Where a linear address lies.
    pub(crate) fn host_of(&mut self, linear: u64, intent: Intent) -> Result<Host, Trap> {
        let known = match intent {
            Intent::Read => self.tlb.read(linear),
            Intent::Write => self.tlb.write(linear),
            Intent::Execute => self.tlb.execute(linear),
        };
        match known {
            Some(host) => Ok(host),
            None => self.resolve(linear, intent),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slowly(&mut self, linear: u64, len_bytes: u64) -> Result<u64, Trap> {
        let host = self.resolve(linear, Intent::Read)?;
        let mut bytes = [0; 8];
        let wanted = &mut bytes[..len_bytes as usize];
        let done = host.read_bytes(wanted);
        if done < wanted.len() {
            let next = self.resolve(self.wrap(next_page(linear)), Intent::Read)?;
            next.read_bytes(&mut wanted[done..]);
        }
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slowly(&mut self, linear: u64, value: u64, len_bytes: u64) -> Result<(), Trap> {
        let host = self.resolve(linear, Intent::Write)?;
        let bytes = value.to_le_bytes();
        let wanted = &bytes[..len_bytes as usize];
        let room = host.room_bytes();
        if room >= len_bytes {
            store_within(host, value, len_bytes);
            return Ok(());
        }
        let next = self.resolve(self.wrap(next_page(linear)), Intent::Write)?;
        let done = host.write_bytes(wanted);
        next.write_bytes(&wanted[done..]);
        Ok(())
    }

    /// Translates, finds the memory, and remembers both.
    #[cold]
    #[inline(never)]
    pub(crate) fn resolve(&mut self, linear: u64, intent: Intent) -> Result<Host, Trap> {
        let rights = if self.is_user() {
            Rights::User
        } else {
            Rights::Supervisor
        };
        let translated = self.translate(linear, intent, rights)?;
        let page = self.physical_page(translated.gpa, intent)?;
        let allowed = match intent {
            Intent::Read => Allowed::Read,
            Intent::Write => Allowed::Write,
            Intent::Execute => Allowed::Execute,
        };
        if translated.lasting {
            self.tlb.insert(linear, page, allowed);
        }
        Ok(page.at(linear))
    }

    fn physical_page(&mut self, gpa: u64, intent: Intent) -> Result<Host, Trap> {
        let found = match intent {
            Intent::Write => {
                let generation = self.physical.generation();
                let page = self.physical.writable(gpa);
                self.code_changed |= self.physical.generation() != generation;
                page
            }
            Intent::Read | Intent::Execute => self.physical.readable(gpa).map(|page| page.host),
        };
        if let Some(page) = found {
            return Ok(page);
        }
        let mapped = self.physical.is_mapped(gpa);
        Err(self.memory_fault(gpa, intent, mapped))
    }

    /// Loads a number with the processor's own rights, as from a descriptor table.
    pub(crate) fn load_implicitly<W: Width>(&mut self, linear: u64) -> Result<u64, Trap> {
        let mut bytes = [0; 8];
        let mut done = 0;
        while done < W::BYTES as usize {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let translated = self.translate(at, Intent::Read, Rights::Implicit)?;
            let page = self.physical_page(translated.gpa, Intent::Read)?;
            done += page.at(at).read_bytes(&mut bytes[done..W::BYTES as usize]);
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores a number with the processor's own rights; it does not cross a page.
    pub(crate) fn store_implicitly<W: Width>(
        &mut self,
        linear: u64,
        value: u64,
    ) -> Result<(), Trap> {
        let bytes = value.to_le_bytes();
        let mut done = 0;
        while done < W::BYTES as usize {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let translated = self.translate(at, Intent::Write, Rights::Implicit)?;
            let page = self.physical_page(translated.gpa, Intent::Write)?;
            done += page.at(at).write_bytes(&bytes[done..W::BYTES as usize]);
        }
        Ok(())
    }

    /// A linear address of the current mode: 32 bits outside of 64-bit code.
    #[inline]
    pub(crate) fn wrap(&self, linear: u64) -> u64 {
        linear & self.linear_mask
    }
}

/// A store that does not cross a page, in one access where it is aligned.
fn store_within(host: Host, value: u64, len_bytes: u64) {
    let done = match len_bytes {
        1 => u8::store(host, value),
        2 => u16::store(host, value),
        4 => u32::store(host, value),
        _ => u64::store(host, value),
    };
    debug_assert!(done.is_some());
}
