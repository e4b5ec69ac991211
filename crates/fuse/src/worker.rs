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
        let performed = catch_unwind(AssertUnwindSafe(|| self.perform(length, memory, out)));
        let outcome = performed.unwrap_or_else(|panic| {
            let what = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            tracing::error!(operation = ?header.operation(), node = header.node, %what, "a request failed by a bug");
            Err(Errno::IO)
        });
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
