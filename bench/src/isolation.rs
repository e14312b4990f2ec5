//! A network namespace of its own for a comparison: TCP and the loopback interface have fixed settings,
//! whatever the machine is set to, and nothing else uses the interface.
//!
//! Owns the settings. The namespace is made by the program `unshare`, which starts this one again in it;
//! a user who is not root gets one in a user namespace, if the system allows that. Nothing else needs to
//! be installed: the interface is set up by a message to the kernel (rtnetlink(7)).

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

use crate::machine;

/// Congestion control that paces nothing.
const CONGESTION_CONTROL: &str = "reno";
/// Index of the loopback interface, in every namespace.
const LOOPBACK: i32 = 1;
/// Kinds of messages and attributes: linux/rtnetlink.h, linux/if_link.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;
const IFLA_GSO_MAX_SIZE: u16 = 41;
const IFLA_GRO_MAX_SIZE: u16 = 58;
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;
/// Sizes of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER_SIZE: usize = 16;
const LINK_SIZE: usize = 16;

/// Flag that says to the program that it was started again.
pub const INSIDE: &str = "--inside";

/// Starts this program again with its own arguments and [`INSIDE`], in a network namespace of its own.
///
/// # Errors
/// Only if it cannot; else the other program takes this one's place.
pub fn start_again() -> Result<()> {
    let program =
        machine::find_program("unshare").context("unshare (util-linux) is not installed")?;
    let mut command = Command::new(program);
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let this = std::env::current_exe().context("find this program")?;
    let error = command.arg("--").arg(this).args(std::env::args_os().skip(1)).arg(INSIDE).exec();
    Err(error).context("start in a network namespace")
}

/// Sets up the namespace that this process is in: the interface, with packets of up to `packet_max`
/// bytes where that is given, and TCP.
///
/// # Errors
/// If the kernel refuses: packets above 64 KiB need Linux 6.3.
pub fn set_up(packet_max: Option<u32>) -> Result<()> {
    let mut sizes = Vec::new();
    if let Some(size) = packet_max {
        for attribute in
            [IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE]
        {
            sizes.push((attribute, size));
        }
    }
    change_loopback(&sizes).context("set up the loopback interface")?;
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    std::fs::write(path, CONGESTION_CONTROL).with_context(|| format!("write {path}"))
}

/// Brings the loopback interface up, with these attributes.
fn change_loopback(attributes: &[(u16, u32)]) -> Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let message = link_message(attributes);
    let kernel = SocketAddrNetlink::new(0, 0);
    let sent = rustix::net::sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    ensure!(sent == message.len(), "the message was cut");
    answer(socket.as_fd())
}

/// Returns the message that asks for it.
fn link_message(attributes: &[(u16, u32)]) -> Vec<u8> {
    let length = HEADER_SIZE + LINK_SIZE + 8 * attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    // Number of the message, and its sender.
    message.extend([0; 8]);
    // Any family, any type.
    message.extend([0; 4]);
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    for (attribute, value) in attributes {
        message.extend(8u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value.to_ne_bytes());
    }
    message
}

/// Reads the kernel's answer: `struct nlmsgerr`, whose number is 0 for success.
fn answer(socket: rustix::fd::BorrowedFd<'_>) -> Result<()> {
    let mut bytes = [0; 256];
    let (_, count) = rustix::net::recv(socket, &mut bytes, RecvFlags::empty())?;
    let Some(number) = bytes[..count].get(HEADER_SIZE..HEADER_SIZE + 4) else {
        bail!("the kernel's answer is {count} bytes");
    };
    let number = i32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
    if number == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-number).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_layout_of_the_kernel() {
        let message = link_message(&[(IFLA_GSO_MAX_SIZE, 1 << 19)]);
        assert_eq!(message.len(), 40);
        assert_eq!(message[..8], [40, 0, 0, 0, 16, 0, 5, 0], "on little-endian machines");
        assert_eq!(message[20..24], [1, 0, 0, 0]);
        assert_eq!(message[32..], [8, 0, 41, 0, 0, 0, 8, 0]);
    }
}
