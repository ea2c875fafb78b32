//! User guests: the machine around them, their page tables, what a restore undoes.

use std::sync::Arc;

use vellum_backend::StateGroup;
use vellum_layout::GpaRange;

use super::guest_side::{Translations, Undo};
use super::host_side::{Reload, Restored};
use super::{CowState, Instance};
use crate::error::Failure;
use crate::machine::{self, ResumePage, Template, monitor};
use crate::memory::{FixedFrame, Layers, Parts, UserParts};
use crate::snapshot::SnapshotData;

impl Instance {
    /// Makes what a new VM's memory has not been made with already: page tables, the frames around them, the monitor's data.
    pub(super) fn load_new_user(
        &mut self,
        snapshot: &SnapshotData,
        template: Option<&Template>,
    ) -> Result<(), Failure> {
        let geometry = self.geometry.clone();
        let user = geometry.user()?;
        if template.is_none() {
            self.write_fixed_frames()?;
            let used = machine::build(&self.memory, &self.geometry, snapshot.user_space()?)?;
            self.write_resume_page()?;
            self.leave_template(snapshot, user, used)?;
        }
        self.tell_bookkeeping()?;
        self.start_monitor(snapshot, user)
    }

    /// Leaves what a new VM's scratch begins with to the next one. The state before boot is used once; a snapshot that another engine's
    /// sandbox came first to keeps that one's.
    fn leave_template(
        &self,
        snapshot: &SnapshotData,
        user: &UserParts,
        tables_used: u64,
    ) -> Result<(), Failure> {
        if snapshot.generation == 0 || snapshot.template.get().is_some() {
            return Ok(());
        }
        let template = Template::copy_of(&self.memory, &self.geometry, user, tables_used);
        // Lost to another thread: equal or of another geometry, either is right to keep.
        let _ = snapshot.template.set(template.map_err(Failure::Memory)?);
        Ok(())
    }

    /// Maps the layers of a snapshot that `present` does not have already over those of another one, and makes its page tables.
    pub(super) fn load_user(
        &mut self,
        snapshot: &SnapshotData,
        present: &Layers,
    ) -> Result<(), Failure> {
        match &mut self.cow {
            CowState::Host(host) => {
                host.forget(self.vm.0.as_mut(), &self.memory, &self.geometry)?;
            }
            CowState::Guest(guest) => guest.forget(&self.memory)?,
            CowState::Kernel(_) => {}
        }
        self.memory
            .stack_layers(&snapshot.layers, present)
            .map_err(Failure::Memory)?;
        let geometry = self.geometry.clone();
        let user = geometry.user()?;
        self.rebuild_tables(snapshot, user.tables)?;
        self.start_monitor(snapshot, user)?;
        self.wipe_buffers()
    }

    fn start_monitor(&mut self, snapshot: &SnapshotData, user: &UserParts) -> Result<(), Failure> {
        match &mut self.cow {
            CowState::Guest(guest) => guest.start(&self.memory, user, snapshot.user_space()?),
            CowState::Host(_) | CowState::Kernel(_) => Ok(()),
        }
    }

    /// Undoes what ring 3 and its monitor wrote, after a clean exit.
    pub(super) fn restore_user(&mut self) -> Result<Restored, Failure> {
        let geometry = self.geometry.clone();
        let reload = if self.can_load(&self.base) {
            Reload::Possible
        } else {
            Reload::NoRoom
        };
        let vm = self.vm.0.as_mut();
        let restored = match &mut self.cow {
            CowState::Host(host) => {
                host.restore(vm, &self.memory, &geometry, &self.base, reload)?
            }
            CowState::Guest(guest) => {
                let undo = Undo::new(&self.memory, &geometry, &self.base);
                let (restored, translations) = guest.restore(vm, undo, reload)?;
                if translations == Translations::Stale {
                    self.renew_root();
                }
                restored
            }
            CowState::Kernel(_) => Restored::Completely,
        };
        match &self.cow {
            // The output buffer is among the pages that were put back.
            CowState::Guest(_) => self.wipe_input()?,
            CowState::Host(_) | CowState::Kernel(_) => self.wipe_buffers()?,
        }
        Ok(restored)
    }

    /// Goes on as the original of a snapshot that was just taken, with pages, tables and vCPU as they are.
    pub(super) fn adopt_in_place(&mut self, snapshot: &Arc<SnapshotData>) -> Result<(), Failure> {
        let vm = self.vm.0.as_mut();
        let translations = match &mut self.cow {
            CowState::Host(host) => {
                host.adopt(vm, &self.base)?;
                Translations::Valid
            }
            CowState::Guest(guest) => {
                let undo = Undo::new(&self.memory, &self.geometry, &self.base);
                guest.adopt(vm, undo, &self.base)?;
                Translations::Stale
            }
            CowState::Kernel(_) => Translations::Valid,
        };
        let mut next = snapshot.state.clone();
        // The vCPU keeps its root, and what its processor has.
        next.special.cr3 = self.state.special.cr3;
        next.special.cr4 = self.state.special.cr4;
        let user = self.geometry.user()?;
        self.resume = Some(ResumePage::new(&next, user.resume));
        self.state = next;
        self.base = snapshot.clone();
        self.write_resume_page()?;
        if translations == Translations::Stale {
            self.renew_root();
            self.vm.0.set_state(StateGroup::Special, &self.state)?;
        }
        Ok(())
    }

    fn rebuild_tables(&mut self, snapshot: &SnapshotData, tables: GpaRange) -> Result<(), Failure> {
        if let Some(template) = snapshot.template_for(&self.geometry) {
            template
                .map_tables_into(&mut self.memory)
                .map_err(Failure::Memory)?;
        } else {
            let start = self.memory.scratch_offset(tables);
            self.memory
                .scratch
                .overlay_zeroed(start, tables.len_bytes())
                .map_err(Failure::Memory)?;
            machine::build(&self.memory, &self.geometry, snapshot.user_space()?)?;
        }
        self.link_mappings()?;
        Ok(self.vm.0.publish_tables()?)
    }

    /// Writes what lies in a user guest's scratch and does not depend on its snapshot: monitor, descriptor tables, PEB.
    pub(super) fn write_fixed_frames(&self) -> Result<(), Failure> {
        let Parts::User(user) = &self.geometry.parts else {
            return Ok(());
        };
        let code = monitor::code();
        if code.len() as u64 > monitor::MAX_CODE_LEN_BYTES {
            return Err(Failure::Memory(std::io::ErrorKind::FileTooLarge.into()));
        }
        self.write_frame(user.fixed_frame(FixedFrame::Monitor)?, code)?;
        let machine = machine::machine_page();
        self.write_frame(user.fixed_frame(FixedFrame::Machine)?, &machine)?;
        self.tell_peb()
    }

    pub(super) fn write_resume_page(&self) -> Result<(), Failure> {
        match (&self.resume, &self.geometry.parts) {
            (Some(page), Parts::User(user)) => {
                self.write_frame(user.fixed_frame(FixedFrame::Resume)?, page.bytes())
            }
            _ => Ok(()),
        }
    }
}
