//! Draining the outbox: what the guest said without leaving, taken at the exit that came next.

use vellum_abi::function::Signature;
use vellum_abi::message::{Argument, Message};
use vellum_abi::outbox::{OutboxHeader, RECORDS_OFFSET, Record, Records};

use super::incoming::check_arguments;
use super::session::{Phase, Session};
use crate::error::Failure;
use crate::host::Incoming;
use crate::logging::LogSink;
use crate::metrics::{Delivery, KnownNames};
use crate::value::Value;

/// The host's side of a sandbox's outbox.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// A copy of the records, reused from exit to exit.
    copy: Vec<u8>,
    names: KnownNames,
    pub(crate) counts: OutboxCounts,
}

/// What guests have said through the outbox of a sandbox, and what of it was lost, since the sandbox was made. Restores do not reset
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxCounts {
    /// Log records that were handed on.
    pub log_records: u64,
    /// Log records beyond the 1000 that a call may have.
    pub log_records_over_quota: u64,
    /// Metrics that were handed on, or that no sink was there for.
    pub metrics: u64,
    /// Metrics that were refused: a name too many, no number, or a sink that panicked.
    pub metrics_refused: u64,
    /// One-way host calls that were made.
    pub one_way_calls: u64,
    /// Those of them whose function returned an error or panicked.
    pub one_way_calls_failed: u64,
    /// One-way host calls that were not made, because the call had been cancelled, its time was over, or the guest was still
    /// initialising.
    pub one_way_calls_discarded: u64,
    /// Records that the guest itself dropped, by its own count, because the outbox was full: see
    /// [`OutboxOverflow`](crate::OutboxOverflow).
    pub dropped_by_guest: u64,
}

impl Session {
    /// Takes what is in the outbox.
    #[inline]
    pub(super) fn drain(&mut self) -> Result<(), Failure> {
        let header = self.instance.outbox_header()?;
        if header == OutboxHeader::default() {
            return Ok(());
        }
        self.take_records(header)
    }

    /// Copies the records, once, and empties the outbox. What is looked at afterwards cannot change any more.
    #[inline(never)]
    fn take_records(&mut self, header: OutboxHeader) -> Result<(), Failure> {
        self.outbox.counts.dropped_by_guest += u64::from(header.dropped);
        self.log().note_dropped(header.dropped);
        let room = self.instance.outbox_len_bytes() - RECORDS_OFFSET as u64;
        let unread = header.unread(0, usize::try_from(room).unwrap_or(0));
        let copied = unread.map(|unread| {
            self.outbox.copy.clear();
            self.instance
                .read_outbox(unread.end as usize, &mut self.outbox.copy)
        });
        // Emptied whatever it held, so that nothing is taken twice.
        self.instance.empty_outbox()?;
        copied.map_err(Failure::Outbox)??;
        self.hand_on()
    }

    /// The log of the call in progress.
    fn log(&mut self) -> &mut LogSink {
        self.log.get_or_insert_default()
    }

    fn hand_on(&mut self) -> Result<(), Failure> {
        let copy = std::mem::take(&mut self.outbox.copy);
        let result =
            Records::new(&copy).try_for_each(|record| match record.map_err(Failure::Outbox)? {
                Record::Log(record) => {
                    let delivery = self.log().emit(&record);
                    let counts = &mut self.outbox.counts;
                    match delivery {
                        Delivery::Delivered => counts.log_records += 1,
                        Delivery::Refused => counts.log_records_over_quota += 1,
                    }
                    Ok(())
                }
                Record::Metric(metric) => {
                    let delivery = match self.host.metrics() {
                        Some(metrics) => self.outbox.names.deliver(metrics, metric),
                        None => Delivery::Delivered,
                    };
                    match delivery {
                        Delivery::Delivered => self.outbox.counts.metrics += 1,
                        Delivery::Refused => self.outbox.counts.metrics_refused += 1,
                    }
                    Ok(())
                }
                Record::OneWay(message) => self.make_one_way_call(message),
            });
        self.outbox.copy = copy;
        result
    }

    /// Calls a host function that has no answer. Whether it fails is nothing to the guest.
    fn make_one_way_call(&mut self, message: Message<'_>) -> Result<(), Failure> {
        let function = message.function();
        let is_one_way = self.host.signature(function).map(Signature::is_one_way);
        if is_one_way != Some(true) || check_arguments(&message, &self.host)?.is_err() {
            return Err(Failure::Protocol(
                "a one-way call of no such host function, or with other arguments",
            ));
        }
        let counts = &mut self.outbox.counts;
        if self.phase == Phase::Booting || self.control.reason().is_some() {
            counts.one_way_calls_discarded += 1;
            return Ok(());
        }
        counts.one_way_calls += 1;
        if let Err((code, text)) = self.host.call(function, &Inline(message))? {
            counts.one_way_calls_failed += 1;
            self.log().note_failed_call(code, &text);
        }
        Ok(())
    }
}

/// The arguments of a one-way call, all of which lie in the message.
struct Inline<'a>(Message<'a>);

impl Incoming for Inline<'_> {
    fn argument(&self, index: usize) -> Result<Value, Failure> {
        match self.0.argument(index).map_err(Failure::Message)? {
            Argument::Value(value) => Ok(Value::from_ref(value)),
            Argument::External(_) => Err(Failure::Protocol(
                "a one-way call with an argument outside of it",
            )),
        }
    }
}
