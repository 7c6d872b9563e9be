//! Whether everything is still where it was put, and putting back what isn't.
//!
//! What is looked at is what the kernel says now, not what the agent remembers: each link's cgroup and program, each
//! pin, and the programs that run at our attach points.

use super::links::{self, AttachPoint, Link};
use super::object::{MOUNTS, Mount, PINNED_MAPS};
use super::pins::make_folder;
use super::{Datapath, program_fd, sys};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Something that isn't as it was put.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, thiserror::Error)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// Our program isn't attached any more.
    #[error("{program} isn't attached to {} any more", attach_point.display())]
    Detached {
        /// The program.
        program: &'static str,
        /// The cgroup.
        attach_point: PathBuf,
    },
    /// Our link holds another program.
    #[error("another program ({found}) has been put in the place of {program} at {}", attach_point.display())]
    Swapped {
        /// The program that should be there.
        program: &'static str,
        /// The cgroup.
        attach_point: PathBuf,
        /// The id of the program that is there.
        found: u32,
    },
    /// A pin is gone: the next agent wouldn't find what it stands for.
    #[error("the pin {} is gone", path.display())]
    Unpinned {
        /// The pin.
        path: PathBuf,
    },
    /// The cgroup that carried the programs was removed, or made anew.
    #[error("the attach point {} is gone or was made anew", path.display())]
    AttachPointGone {
        /// The cgroup.
        path: PathBuf,
    },
    /// A program that isn't ours runs at our attach point. It is left alone: it may be another agent's business, and
    /// it can only refuse more, or rewrite addresses before we see them.
    #[error("program {id} isn't Bulkhead's and runs at {} ({hook})", attach_point.display())]
    Foreign {
        /// The cgroup.
        attach_point: PathBuf,
        /// Our program at the same hook.
        hook: &'static str,
        /// The program's id.
        id: u32,
    },
}

impl Fault {
    /// The kind, for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Detached { .. } => "detached",
            Self::Swapped { .. } => "swapped",
            Self::Unpinned { .. } => "unpinned",
            Self::AttachPointGone { .. } => "attach-point-gone",
            Self::Foreign { .. } => "foreign",
        }
    }

    /// Whether [`Datapath::repair`] can do something about it.
    pub const fn is_repairable(&self) -> bool {
        !matches!(self, Self::Foreign { .. })
    }
}

impl Datapath {
    /// What isn't as it should be. Before the first attach only pins are looked at.
    pub fn inspect(&self) -> io::Result<Vec<Fault>> {
        let mut faults = Vec::new();
        let maps = PINNED_MAPS.iter().map(|name| self.set.map(name));
        let links = self.links.iter().map(|l| self.set.link(l.cgroup, l.mount.program));
        let programs = MOUNTS.iter().filter(|_| !self.links.is_empty()).map(|m| self.set.program(m.program));
        for path in maps.chain(programs).chain(links) {
            if !path.try_exists()? {
                faults.push(Fault::Unpinned { path });
            }
        }
        for path in &self.options.attach {
            self.inspect_point(path, &mut faults)?;
        }
        Ok(faults)
    }

    fn inspect_point(&self, path: &PathBuf, faults: &mut Vec<Fault>) -> io::Result<()> {
        let links: Vec<&Link> = self.links.iter().filter(|l| l.path == *path).collect();
        let Some(cgroup) = links.first().map(|l| l.cgroup) else { return Ok(()) };
        let directory = match AttachPoint::open(path) {
            Ok(point) if point.id == cgroup => point.directory,
            _ => {
                faults.push(Fault::AttachPointGone { path: path.clone() });
                return Ok(());
            }
        };
        for link in links {
            let program = link.mount.program;
            let ours = self.program_id(program)?;
            let info = link.info()?;
            if info.cgroup != cgroup {
                faults.push(Fault::Detached { program, attach_point: path.clone() });
            } else if info.program != ours {
                faults.push(Fault::Swapped { program, attach_point: path.clone(), found: info.program });
            }
            for id in sys::attached_programs(directory.as_fd(), link.mount.attach_type)? {
                if id != ours && id != info.program {
                    faults.push(Fault::Foreign { attach_point: path.clone(), hook: program, id });
                }
            }
        }
        Ok(())
    }

    /// Puts back what a fault names; what can't be put back stays a fault for the next [`Datapath::inspect`].
    pub fn repair(&mut self, fault: &Fault) -> io::Result<()> {
        match fault {
            Fault::Unpinned { .. } => self.pin_again(),
            Fault::Swapped { program, attach_point, .. } => {
                let ours = program_fd(&self.ebpf, program)?;
                let link = self.links.iter().find(|l| l.mount.program == *program && l.path == *attach_point);
                link.map_or(Ok(()), |link| sys::link_update(link.fd.as_fd(), ours))
            }
            Fault::Detached { program, attach_point } => {
                let Some(mount) = MOUNTS.into_iter().find(|m| m.program == *program) else { return Ok(()) };
                self.attach_again(&[mount], attach_point)
            }
            // A new cgroup of the same name: it is attached to like the first time.
            Fault::AttachPointGone { path } => {
                let mounts: Vec<Mount> = MOUNTS.into_iter().filter(|m| !self.disabled.contains(&m.hook)).collect();
                self.attach_again(&mounts, path)?;
                self.prune()
            }
            Fault::Foreign { .. } => Ok(()),
        }
    }

    fn attach_again(&mut self, mounts: &[Mount], path: &PathBuf) -> io::Result<()> {
        let point = AttachPoint::open(path).map_err(io::Error::other)?;
        for mount in mounts {
            let link = links::create(&self.set, *mount, &point, program_fd(&self.ebpf, mount.program)?)?;
            self.links.retain(|l| !(l.mount == *mount && l.path == *path));
            self.links.push(link);
        }
        self.note_old_sockets().map_err(io::Error::other)
    }

    /// Pins everything that isn't pinned, from our own descriptors.
    fn pin_again(&self) -> io::Result<()> {
        self.set.create()?;
        for (name, map) in &self.maps {
            let path = self.set.map(name);
            if !path.try_exists()? {
                sys::pin(map.as_fd(), &path)?;
            }
        }
        for link in &self.links {
            make_folder(&self.set.attach_point(link.cgroup))?;
            let path = self.set.link(link.cgroup, link.mount.program);
            if !path.try_exists()? {
                sys::pin(link.fd.as_fd(), &path)?;
            }
        }
        if self.links.is_empty() { Ok(()) } else { self.pin_programs() }
    }

    fn program_id(&self, name: &str) -> io::Result<u32> {
        Ok(sys::program_info(program_fd(&self.ebpf, name)?)?.id)
    }
}
