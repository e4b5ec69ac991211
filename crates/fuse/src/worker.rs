//! One request after the other: receive, decode, perform, answer.
//!
//! Owns the steps of a serving thread and the rule that a bug in one request is EIO for that request. Which threads there
//! are is `crew`'s.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use plyfs_sys::Errno;

use crate::channel::{Channel, Delivery, Memory, Received};
use crate::ops::Operations;
use crate::reply::{self, Answer, Outcome};
use crate::request::{Dialect, Header, Request};
use crate::wire::Output;

/// What serving threads share.
pub struct Server {
    /// The connection.
    pub channel: Arc<Channel>,
    /// What requests are carried out on.
    pub operations: Operations,
    /// How requests are laid out.
    pub dialect: Dialect,
    /// Largest READ and WRITE in bytes.
    pub max_write: usize,
}

/// The memory of one serving thread.
pub struct Desk {
    memory: Memory,
    out: Output,
}

impl Server {
    /// Memory for a thread of this server.
    pub fn desk(&self) -> Desk {
        Desk { memory: Memory::new(self.max_write), out: Output::with_capacity(4096) }
    }

    /// Waits for a request and reads it.
    ///
    /// # Errors
    /// The errno of readv(2), where serving cannot go on.
    pub fn receive(&self, desk: &mut Desk) -> Result<Received, Errno> {
        self.channel.receive(desk.memory.request())
    }

    /// The thread that made the request just received; 0 if it is not known or was none.
    pub fn client(&self, desk: &mut Desk) -> u32 {
        Header::decode(desk.memory.request()).map_or(0, |(header, _)| header.pid)
    }

    /// Carries out the request of `length` bytes just received, and answers it.
    ///
    /// # Errors
    /// The errno of writev(2), where serving cannot go on.
    pub fn handle(&self, length: usize, desk: &mut Desk) -> Result<(), Errno> {
        let Desk { memory, out } = desk;
        let message = memory.request().get(..length).unwrap_or_default();
        let (header, _) = match Header::decode(message) {
            Ok(decoded) => decoded,
            Err(error) => {
                // Without a header there is nobody to answer.
                tracing::error!(%error, "a message from the kernel cannot be read");
                return Ok(());
            }
        };
        out.clear();
        let outcome = guarded(&header, || self.perform(length, memory, out));
        tracing::trace!(operation = ?header.operation(), node = header.node, pid = header.pid, ?outcome);
        self.answer(&header, outcome, out, memory)
    }

    fn perform(&self, length: usize, memory: &mut Memory, out: &mut Output) -> Outcome {
        let message = memory.request().get(..length).unwrap_or_default();
        let malformed = |error| {
            tracing::error!(%error, "a request from the kernel cannot be read");
            Errno::IO
        };
        let (header, arguments) = Header::decode(message).map_err(malformed)?;
        match Request::decode(&header, arguments, self.dialect).map_err(malformed)? {
            // Its data overwrites the request.
            Request::Read { handle, offset, size } => self.operations.read(handle, offset, size, memory),
            request => self.operations.perform(&self.channel, &header, request, out),
        }
    }

    fn answer(
        &self,
        header: &Header,
        outcome: Outcome,
        out: &mut Output,
        memory: &mut Memory,
    ) -> Result<(), Errno> {
        match reply::send(&self.channel, header.unique, outcome, out, memory) {
            Ok(Delivery::Taken) => Ok(()),
            Ok(Delivery::Unwanted) => {
                self.operations.take_back(outcome.unwrap_or(Answer::Silence), out);
                Ok(())
            }
            Err(errno) => {
                // The kernel refused the form of the answer; the request would hang without another one.
                tracing::error!(operation = ?header.operation(), node = header.node, %errno, "an answer was refused");
                self.operations.take_back(outcome.unwrap_or(Answer::Silence), out);
                self.channel.answer_error(header.unique, Errno::IO).map(drop)
            }
        }
    }
}

/// A bug in one request is EIO for that request.
fn guarded(header: &Header, perform: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(perform)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let what = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!(operation = ?header.operation(), node = header.node, %what, "a request failed by a bug");
        Err(Errno::IO)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use plyfs_core::{Overlay, Settings};
    use plyfs_format::StackSpec;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::abi::{IN_HEADER, Opcode};
    use crate::encode::Timeouts;
    use crate::executing::Executing;
    use crate::iomode::IoModes;
    use crate::wire::Input;

    /// A server whose kernel is the test, over a socket that keeps messages apart.
    struct Fixture {
        server: Server,
        kernel: OwnedFd,
        _layers: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let layers = tempfile::tempdir().unwrap();
            for name in ["lower", "upper", "work"] {
                std::fs::create_dir(layers.path().join(name)).unwrap();
            }
            std::fs::write(layers.path().join("lower/file"), "content").unwrap();
            let at = layers.path().display();
            let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
            let spec = StackSpec::parse(&[options]).unwrap().spec;
            let overlay = Overlay::assemble(&spec, &Settings::default()).unwrap();
            let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
            let (kernel, daemon) = rustix::net::socketpair(kind.0, kind.1, kind.2, None).unwrap();
            let operations = Operations {
                overlay,
                modes: IoModes::new(None),
                executing: Executing::default(),
                replaced: Arc::default(),
                timeouts: Timeouts::FOREVER,
                writeback: false,
                fsync: true,
            };
            let channel = Arc::new(Channel::new(daemon));
            let dialect = Dialect { setxattr_ext: true };
            let server = Server { channel, operations, dialect, max_write: 1 << 16 };
            Self { server, kernel, _layers: layers }
        }

        /// The error and body of the answer; `None` if there is none.
        fn ask(&self, opcode: u32, node: u64, arguments: &[u8]) -> Option<(i32, Vec<u8>)> {
            let mut message = Output::default();
            let length = u32::try_from(IN_HEADER + arguments.len()).unwrap();
            message.u32(length).u32(opcode).u64(77).u64(node).u32(0).u32(0).u32(1).u32(0).bytes(arguments);
            rustix::io::write(&self.kernel, message.as_bytes()).unwrap();
            let mut desk = self.server.desk();
            let Received::Message(length) = self.server.receive(&mut desk).unwrap() else { panic!() };
            self.server.handle(length, &mut desk).unwrap();
            rustix::fs::fcntl_setfl(&self.kernel, rustix::fs::OFlags::NONBLOCK).unwrap();
            let mut answer = vec![0; 1 << 17];
            let read = rustix::io::read(&self.kernel, &mut answer);
            let again = rustix::io::read(&self.kernel, &mut [0_u8; 1]);
            assert!(again.is_err(), "one request, one answer");
            let length = read.ok()?;
            answer.truncate(length);
            let mut input = Input::new(&answer);
            assert_eq!(input.u32().map(|told| told as usize), Some(length));
            let error = input.u32().unwrap().cast_signed();
            assert_eq!(input.u64(), Some(77));
            Some((error, input.rest().to_vec()))
        }
    }

    #[test]
    fn a_request_that_is_cut_short_gets_eio_and_the_next_is_served() {
        let fixture = Fixture::new();
        assert_eq!(fixture.ask(Opcode::Read as u32, 1, &[0; 8]), Some((-5, Vec::new())));
        let (error, entry) = fixture.ask(Opcode::Lookup as u32, 1, b"file\0").unwrap();
        assert_eq!((error, entry.len()), (0, crate::abi::ENTRY_OUT));
        assert_ne!(Input::new(&entry).u64(), Some(0));
    }

    #[test]
    fn an_absent_name_is_remembered_as_such() {
        let (error, entry) = Fixture::new().ask(Opcode::Lookup as u32, 1, b"nothing\0").unwrap();
        assert_eq!((error, Input::new(&entry).u64()), (0, Some(0)));
    }

    #[test]
    fn what_the_kernel_need_not_ask_is_refused_once_for_ever() {
        let fixture = Fixture::new();
        for opcode in [Opcode::OpenDir, Opcode::Flush, Opcode::Access] {
            assert_eq!(fixture.ask(opcode as u32, 1, &[0; 24]), Some((-38, Vec::new())));
        }
        assert_eq!(fixture.ask(4000, 1, &[]), Some((-38, Vec::new())));
    }

    #[test]
    fn forgets_and_interrupts_are_not_answered() {
        let fixture = Fixture::new();
        for opcode in [Opcode::Forget, Opcode::Interrupt] {
            assert_eq!(fixture.ask(opcode as u32, 5, &[0; 8]), None);
        }
    }

    #[test]
    fn a_bug_is_eio() {
        let header = Header { opcode: 1, unique: 1, node: 1, uid: 0, gid: 0, pid: 0 };
        assert_eq!(guarded(&header, || panic!("a bug in a request")), Err(Errno::IO));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_asked_there_is_one_answer(
            requests in proptest::collection::vec(
                (1_u32..56, 0_u64..6, proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), any::<u8>()], 0..80)),
                1..20,
            ),
        ) {
            let fixture = Fixture::new();
            for (opcode, node, arguments) in requests {
                let answer = fixture.ask(opcode, node, &arguments);
                let silent = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt].map(|code| code as u32);
                // A FORGET that cannot be read has nobody waiting either, but the kernel ignores an error for it.
                prop_assert!(answer.is_some() || silent.contains(&opcode), "{opcode}");
            }
        }
    }
}
