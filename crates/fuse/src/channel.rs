//! One connection to the kernel: requests in, answers and notifications out.
//!
//! Owns the descriptor of `/dev/fuse` and the memory that messages pass through. Knows headers, no bodies. The kernel's
//! counterpart is `fs/fuse/dev.c`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plyfs_sys::{Errno, device};

use crate::abi::{IN_HEADER, MIN_READ_BUFFER, NotifyCode, OUT_HEADER, WRITE_IN};
use crate::wire::Output;

/// The connection. Any number of threads may receive and answer on it.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

/// What became of waiting for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A message of this many bytes stands in the buffer.
    Message(usize),
    /// The file system was unmounted, or the connection aborted: no request will ever come.
    Closed,
    /// A signal came; there may be none.
    Interrupted,
}

/// Whether an answer arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Delivery {
    /// The kernel took it.
    Taken,
    /// Nobody waited for it any more: what it would have given the kernel (lookups, handles) was not given.
    Unwanted,
}

impl Channel {
    /// The connection of an open `/dev/fuse`.
    #[must_use]
    pub const fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Waits for a request and reads it into `buffer`.
    ///
    /// # Errors
    /// The errno of readv(2), other than those that mean "again" (ENOENT, EAGAIN) and those that [`Received`] names.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Received, Errno> {
        loop {
            match device::read_request(self.fd.as_fd(), &mut [IoSliceMut::new(buffer)]) {
                Ok(length) => return Ok(Received::Message(length)),
                Err(Errno::NOENT | Errno::AGAIN) => {}
                Err(Errno::INTR) => return Ok(Received::Interrupted),
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Received::Closed),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Answers request `unique` with the body in `out`.
    ///
    /// # Errors
    /// The errno of writev(2).
    pub fn answer(&self, unique: u64, out: &mut Output) -> Result<Delivery, Errno> {
        let header = out_header(out.len(), 0, unique);
        self.send(out.with_header(header))
    }

    /// Answers request `unique` with the first `length` bytes of the payload of `memory`.
    ///
    /// # Errors
    /// The errno of writev(2).
    pub fn answer_data(&self, unique: u64, memory: &mut Memory, length: usize) -> Result<Delivery, Errno> {
        let header = out_header(length, 0, unique);
        self.send(memory.payload_with_header(header, length))
    }

    /// Answers request `unique` with an error.
    ///
    /// # Errors
    /// The errno of writev(2).
    pub fn answer_error(&self, unique: u64, errno: Errno) -> Result<Delivery, Errno> {
        self.send(&out_header(0, -errno.raw_os_error(), unique))
    }

    /// Tells the kernel something unasked.
    ///
    /// # Errors
    /// The errno of writev(2); ENOENT when the kernel does not know the node or name, which is often no error.
    pub fn notify(&self, code: NotifyCode, body: &[u8]) -> Result<(), Errno> {
        self.notify_with(code, body, &[])
    }

    /// As [`notify`](Self::notify), with data behind the body.
    ///
    /// # Errors
    /// The errno of writev(2).
    pub fn notify_with(&self, code: NotifyCode, body: &[u8], data: &[u8]) -> Result<(), Errno> {
        let header = out_header(body.len() + data.len(), code as i32, 0);
        let parts = [IoSlice::new(&header), IoSlice::new(body), IoSlice::new(data)];
        device::write_reply(self.fd.as_fd(), &parts).map(drop)
    }

    fn send(&self, message: &[u8]) -> Result<Delivery, Errno> {
        match device::write_reply(self.fd.as_fd(), &[IoSlice::new(message)]) {
            Ok(_) => Ok(Delivery::Taken),
            // ENOENT: interrupted. ENODEV and ECONNABORTED: unmounted meanwhile; the next receive says so.
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(Delivery::Unwanted),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `fuse_out_header`.
fn out_header(body: usize, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    // Bodies are limited by the kernel's own limits, far below 4 GiB.
    let length = u32::try_from(OUT_HEADER + body).unwrap_or(u32::MAX);
    let mut header = [0; OUT_HEADER];
    let fields = length.to_ne_bytes().into_iter().chain(error.to_ne_bytes()).chain(unique.to_ne_bytes());
    for (place, byte) in header.iter_mut().zip(fields) {
        *place = byte;
    }
    header
}

/// The memory of one thread through which messages pass. The data of a WRITE and of an answer to READ start at a page,
/// so that the kernel copies whole pages and a file opened with `O_DIRECT` accepts them.
#[derive(Debug)]
pub struct Memory {
    bytes: Vec<u8>,
    payload: usize,
    capacity: usize,
}

impl Memory {
    const PAGE: usize = 4096;
    const REQUEST_HEAD: usize = IN_HEADER + WRITE_IN;

    /// Memory for requests and answers that carry up to `max_write` bytes of data. The system gives pages when they are
    /// first used.
    #[must_use]
    pub fn new(max_write: usize) -> Self {
        let capacity = max_write.max(MIN_READ_BUFFER);
        let bytes = vec![0; capacity + 2 * Self::PAGE];
        let past_page = bytes.as_ptr().addr() % Self::PAGE;
        // At least one page in front, for the headers.
        let payload = 2 * Self::PAGE - past_page;
        Self { bytes, payload, capacity }
    }

    /// Where a request is read to: as large as the kernel demands for `max_write`.
    pub fn request(&mut self) -> &mut [u8] {
        let from = self.payload - Self::REQUEST_HEAD;
        self.bytes.get_mut(from..self.payload + self.capacity).unwrap_or_default()
    }

    /// Where the data of an answer to READ is put, at most `length` bytes.
    pub fn payload(&mut self, length: usize) -> &mut [u8] {
        let length = length.min(self.capacity);
        self.bytes.get_mut(self.payload..self.payload + length).unwrap_or_default()
    }

    fn payload_with_header(&mut self, header: [u8; OUT_HEADER], length: usize) -> &[u8] {
        let from = self.payload - OUT_HEADER;
        let message = self.bytes.get_mut(from..self.payload + length.min(self.capacity)).unwrap_or_default();
        if let Some(room) = message.first_chunk_mut() {
            *room = header;
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_write_and_of_a_read_start_at_a_page() {
        for max_write in [0, 4096, 128 << 10, 1 << 20] {
            let mut memory = Memory::new(max_write);
            assert!(memory.request().len() >= IN_HEADER + WRITE_IN + max_write);
            assert!(memory.request().len() >= MIN_READ_BUFFER);
            let data = &memory.request()[IN_HEADER + WRITE_IN..];
            assert_eq!(data.as_ptr().addr() % 4096, 0);
            assert_eq!(memory.payload(10).as_ptr().addr() % 4096, 0);
            assert_eq!(memory.payload(usize::MAX).len(), max_write.max(MIN_READ_BUFFER));
        }
    }

    #[test]
    fn an_answer_is_header_and_data_in_one_piece() {
        let mut memory = Memory::new(4096);
        memory.payload(3).copy_from_slice(b"abc");
        let message = memory.payload_with_header(out_header(3, 0, 0x0102_0304), 3);
        assert_eq!(message.len(), 19);
        assert_eq!(message[..4], 19_u32.to_ne_bytes());
        assert_eq!(message[8..16], 0x0102_0304_u64.to_ne_bytes());
        assert_eq!(&message[16..], b"abc");
    }
}
