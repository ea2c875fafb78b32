//! A host in the same process: a gate that runs a script, and the two buffers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use vellum_abi::fill::FillRequest;
use vellum_abi::message::{
    Argument, Limits, Message, MessageKind, MessageWriter, Outcome, Place, WriteError,
};
use vellum_abi::outbox::{OutboxHeader, RECORDS_OFFSET, Record as OutboxRecord, Records};
use vellum_abi::peb::Peb;
use vellum_abi::port::Port;
use vellum_abi::value::ValueRef;
use vellum_guest::rt::{Gate, Link};
use zerocopy::FromBytes;

pub(crate) const BUFFER_LEN_BYTES: usize = 4096;

/// What the host answers to one host call: the whole message, and its external bytes if the message has any.
pub(crate) type HostAnswer = (Vec<u8>, Vec<u8>);

/// A host whose guest is the test itself.
pub(crate) struct FakeHost {
    input: Buffer,
    output: Buffer,
    outbox: Buffer,
    /// External bytes of the latest message, whichever slot it is.
    external: RefCell<Vec<u8>>,
    /// Answers to the host calls to come.
    answers: RefCell<VecDeque<HostAnswer>>,
    /// The host calls that came, as they lay in the output buffer.
    pub(crate) host_calls: RefCell<Vec<Vec<u8>>>,
    /// The one-way calls that came: function and arguments.
    pub(crate) told: RefCell<Vec<(u32, Vec<u8>)>>,
    pub(crate) exits: RefCell<Vec<Port>>,
}

/// Eight-byte aligned memory that guest and host both change.
struct Buffer(Box<[Cell<u64>; BUFFER_LEN_BYTES / 8]>);

impl Buffer {
    fn new() -> Self {
        Self(Box::new(std::array::from_fn(|_| {
            Cell::new(0x5A5A_5A5A_5A5A_5A5A)
        })))
    }

    fn zeroed() -> Self {
        Self(Box::new(std::array::from_fn(|_| Cell::new(0))))
    }

    fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn read(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|word| word.get().to_le_bytes())
            .collect()
    }

    fn write(&self, bytes: &[u8]) {
        for (word, chunk) in self.0.iter().zip(bytes.chunks(8)) {
            let mut whole = word.get().to_le_bytes();
            whole[..chunk.len()].copy_from_slice(chunk);
            word.set(u64::from_le_bytes(whole));
        }
    }
}

/// A message of the host and, if a value did not fit, that value's bytes.
pub(crate) fn message(kind: MessageKind, function: u32, values: &[ValueRef<'_>]) -> HostAnswer {
    let mut bytes = vec![0; BUFFER_LEN_BYTES];
    let mut external = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes, kind, function, values.len()).expect("room");
    for value in values {
        match writer.push(*value) {
            Ok(()) => {}
            Err(WriteError::BufferTooSmall { .. }) => {
                let payload = value.payload();
                writer
                    .push_host_slot(value.value_type(), payload.len())
                    .expect("a slot");
                external = payload.to_vec();
            }
            Err(error) => panic!("{error}"),
        }
    }
    let len_bytes = writer.finish().expect("complete");
    bytes.truncate(len_bytes);
    (bytes, external)
}

impl FakeHost {
    pub(crate) fn new() -> Self {
        Self {
            input: Buffer::new(),
            output: Buffer::new(),
            outbox: Buffer::zeroed(),
            external: RefCell::default(),
            answers: RefCell::default(),
            host_calls: RefCell::default(),
            told: RefCell::default(),
            exits: RefCell::default(),
        }
    }

    pub(crate) fn link(&self) -> Link<'_> {
        let peb = Peb {
            input_ptr: self.input.address(),
            input_len_bytes: BUFFER_LEN_BYTES as u64,
            output_ptr: self.output.address(),
            output_len_bytes: BUFFER_LEN_BYTES as u64,
            outbox_ptr: self.outbox.address(),
            outbox_len_bytes: BUFFER_LEN_BYTES as u64,
            ..Peb::empty()
        };
        // SAFETY: the buffers live as long as the link and are written by this host during exits only, or between
        // calls.
        unsafe { Link::new(&peb, self) }
    }

    /// Puts a message into the input buffer.
    pub(crate) fn send(&self, (bytes, external): HostAnswer) {
        self.input.write(&bytes);
        *self.external.borrow_mut() = external;
    }

    /// Answers the next host call with this.
    pub(crate) fn will_answer(&self, answer: HostAnswer) {
        self.answers.borrow_mut().push_back(answer);
    }

    /// Takes out what the outbox holds, which must be one-way calls.
    pub(crate) fn drain(&self) {
        let bytes = self.outbox.read();
        let (header, _) = OutboxHeader::read_from_prefix(&bytes).expect("a header");
        let records = &bytes[RECORDS_OFFSET..];
        let unread = header.unread(0, records.len()).expect("a sound end");
        for record in Records::new(&records[..unread.end as usize]) {
            let Ok(OutboxRecord::OneWay(message)) = record else {
                panic!("{record:?}")
            };
            let arguments = message.arguments().flatten().flat_map(guest_bytes);
            let told = (message.function(), arguments.collect());
            self.told.borrow_mut().push(told);
        }
        self.outbox.write(&[0; 8]);
    }

    /// Reads the guest's reply.
    pub(crate) fn reply<T>(&self, read: impl FnOnce(u32, Outcome<'_>) -> T) -> T {
        let output = self.output.read();
        let message =
            Message::parse(&output, Limits::for_buffer(output.len())).expect("a sound reply");
        assert_eq!(message.kind(), MessageKind::Reply);
        read(message.function(), message.outcome().expect("a sound slot"))
    }
}

/// The bytes of a value of the guest's, which is in this process.
pub(crate) fn guest_bytes(argument: Argument<'_>) -> Vec<u8> {
    match argument {
        Argument::Value(value) => value.payload().to_vec(),
        Argument::External(external) => {
            let Place::GuestMemory { gva } = external.place else {
                panic!("{external:?} of a guest")
            };
            let address =
                std::ptr::with_exposed_provenance::<u8>(usize::try_from(gva).expect("64 bits"));
            // SAFETY: the guest library promises that the bytes stay until the guest is called or resumed again.
            unsafe { std::slice::from_raw_parts(address, external.len_bytes as usize) }.to_vec()
        }
    }
}

impl Gate for FakeHost {
    fn exit(&self, port: Port, _: u32) {
        self.exits.borrow_mut().push(port);
        let output = self.output.read();
        match port {
            Port::HostCall => {
                let call = Message::parse(&output, Limits::for_buffer(output.len()))
                    .expect("a sound call");
                assert_eq!(call.kind(), MessageKind::HostCall);
                self.host_calls
                    .borrow_mut()
                    .push(call.arguments().flatten().flat_map(guest_bytes).collect());
                let answer = self
                    .answers
                    .borrow_mut()
                    .pop_front()
                    .expect("a host call was expected");
                self.send(answer);
            }
            Port::Fill => {
                let request = FillRequest::parse(&output).expect("a sound request");
                let external = self.external.borrow();
                assert_eq!(request.len_bytes, external.len() as u64);
                let address = std::ptr::with_exposed_provenance_mut::<u8>(
                    usize::try_from(request.gva).expect("64 bits"),
                );
                // SAFETY: the guest library promises writable memory of that length.
                unsafe { address.copy_from_nonoverlapping(external.as_ptr(), external.len()) };
            }
            Port::Drain => self.drain(),
            other => panic!("exit through {other:?}"),
        }
    }
}
