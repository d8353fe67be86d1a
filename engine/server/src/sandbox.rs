//! What the server gives up once it has what it needs.
//!
//! Requests are hostile text, and much code reads them. The threads that do so see no files but the adapters that requests
//! may load, and open no connections (Landlock, from their first instruction on). When the model is loaded, the whole
//! process starts no program, looks into no other process and gets no socket that leaves the machine (seccomp): what was
//! bound before goes on to be listened on. A kernel that has one of the two not is told of, and left as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, path_beneath_rules,
};
use seccompiler::{
    BpfProgram, Error as SeccompError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Rights that are taken, where the kernel knows them: those of Linux 6.10.
const RIGHTS: ABI = ABI::V5;

/// What a process that serves has no use for.
const CALLS: [libc::c_long; 24] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
];

/// What the kernel keeps a server from, whatever a request made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Files and connections, for the threads that read requests.
    pub files: Enforced,
    /// System calls, for all threads.
    pub calls: Enforced,
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sandbox: files {} (Landlock), system calls {} (seccomp)", self.files, self.calls)
    }
}

/// How much of it this kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All.
    Fully,
    /// An older kernel knows some of the rights.
    Partly,
    /// Nothing.
    Not,
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Fully => "kept",
            Self::Partly => "kept in part, the kernel is old",
            Self::Not => "not kept, the kernel does not do it",
        })
    }
}

/// The calling thread, and those that it starts, read nothing but what lies below `readable`, write nothing, and neither
/// connect nor listen over TCP.
pub(crate) fn restrict_files(readable: &[&Path]) -> Result<Enforced, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(AccessNet::from_all(RIGHTS))?
        .create()?
        .add_rules(path_beneath_rules(readable, AccessFs::from_read(RIGHTS)))?;
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Not,
    })
}

/// All threads of this process, those to come included, are refused [`CALLS`], and sockets that are not of the file system.
pub(crate) fn restrict_calls() -> Result<(), SeccompError> {
    seccompiler::apply_filter_all_threads(&refusals()?)
}

fn refusals() -> Result<BpfProgram, SeccompError> {
    // A refusal without a condition is one of every such call.
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let unix = libc::AF_UNIX as u64;
    let elsewhere = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![elsewhere])?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_reads_what_it_may_and_writes_and_connects_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (open, closed) = (folder.path().join("open"), folder.path().join("closed"));
        for folder in [&open, &closed] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("file"), "text").unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            if restrict_files(&[&open]).unwrap() != Enforced::Fully {
                eprintln!("*** NOT TESTED: Landlock, which this kernel does not have. ***");
                return;
            }
            assert_eq!(fs::read_to_string(open.join("file")).unwrap(), "text");
            let refused = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            refused(File::open(closed.join("file")).unwrap_err());
            refused(File::create(open.join("new")).unwrap_err());
            refused(fs::remove_file(open.join("file")).unwrap_err());
            refused(TcpStream::connect(address).unwrap_err());
            refused(TcpListener::bind("127.0.0.1:0").unwrap_err());
        });
        thread.join().unwrap();
        // The others are as they were.
        TcpStream::connect(address).unwrap();
        fs::read(folder.path().join("closed/file")).unwrap();
    }

    #[test]
    fn no_program_is_started_and_no_socket_leaves_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let thread = thread::spawn(move || {
            seccompiler::apply_filter(&refusals().unwrap()).unwrap();
            assert_eq!(Command::new("true").spawn().unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(TcpStream::connect("127.0.0.1:1").unwrap_err().kind(), ErrorKind::PermissionDenied);
            UnixListener::bind(socket).unwrap();
        });
        thread.join().unwrap();
        assert!(Command::new("true").status().unwrap().success());
    }
}
