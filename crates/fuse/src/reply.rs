//! The one bridge from the result of an operation to an answer.
//!
//! Owns what happens when nobody waits for the answer any more: what it would have given the kernel is taken back from
//! the engine, or it would never be released.

use plyfs_core::HandleId;
use plyfs_sys::Errno;

use crate::channel::{Channel, Delivery, Memory};
use crate::replaced::Inode;
use crate::wire::Output;

/// What the body of an answer is, and what it gives the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The bytes in the [`Output`]; nothing is given.
    Body,
    /// This many bytes of the [`Memory`]'s payload.
    Data(usize),
    /// One lookup of an inode.
    Entry(Inode),
    /// An open file.
    Open(OpenGiven),
    /// One lookup of a new inode, and an open file of it.
    EntryAndOpen(OpenGiven),
    /// The lookups that the listing in the [`Output`] mentions.
    Listing,
    /// No answer at all (FORGET and its like).
    Silence,
}

/// An open file that an answer gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenGiven {
    /// Its inode.
    pub inode: Inode,
    /// Its handle.
    pub handle: HandleId,
    /// Whether it may be mapped to be written.
    pub maps: bool,
    /// Whether it was opened to be executed.
    pub executes: bool,
}

/// The result of an operation.
pub type Outcome = Result<Answer, Errno>;

/// Sends the answer; `Unwanted` when the kernel did not take what it gives.
///
/// # Errors
/// The errno of writev(2).
pub fn send(
    channel: &Channel,
    unique: u64,
    outcome: Outcome,
    out: &mut Output,
    memory: &mut Memory,
) -> Result<Delivery, Errno> {
    match outcome {
        Ok(Answer::Silence) => Ok(Delivery::Taken),
        Ok(Answer::Data(length)) => channel.answer_data(unique, memory, length),
        Ok(_) => channel.answer(unique, out),
        Err(errno) => channel.answer_error(unique, errno),
    }
}
