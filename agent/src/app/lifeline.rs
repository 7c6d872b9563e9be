//! An agent's own way to the API server, from its first instruction.
//!
//! What a former agent put in force holds while the next one starts, and doesn't know the next one's pod: a cgroup that
//! nobody has told of takes the strictest default there is. The agent learns who is who from the API server, so it would
//! wait for ever for what its own programs keep from it. Therefore it first enters its own cgroup, as one of the node's
//! own processes, into the ruleset that it found; everything else stays as it was.

use super::engine::HOST;
use super::kernel::Kernel;
use crate::sources::hierarchy::Cgroup;
use anyhow::Context;
use bulkhead_common::Class;
use bulkhead_common::maps::MAX_LEVEL;
use bulkhead_common::slots::Binding;

/// Enters `own` into what is in force, if anything is and it isn't there yet.
///
/// # Errors
/// When it can't be entered: without it nothing will ever be learnt.
pub(super) fn hold<K: Kernel>(kernel: &mut K, own: &Cgroup) -> anyhow::Result<()> {
    let Some(mut image) = kernel.in_force() else { return Ok(()) };
    if image.cgroups.contains_key(&own.id) {
        return Ok(());
    }
    anyhow::ensure!(own.level <= MAX_LEVEL, "the agent's own cgroup {} lies too deep", own.path);
    image.cgroups.insert(own.id, Binding::of(Class::Host.id()));
    image.levels |= 1 << own.level;
    image.baselines.insert(Class::Host.id(), HOST);
    let done = kernel.commit(&image).context("entering the agent's own cgroup into what is in force")?;
    tracing::info!(epoch = done.epoch, cgroup = own.path, "the agent may reach the API server, whatever is in force");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::tests::Fake;
    use crate::image::Image;
    use bulkhead_common::slots::{Baseline, Sides};
    use bulkhead_common::{PeerId, Tables};

    #[test]
    fn a_new_agent_adds_itself_and_leaves_the_rest() {
        let mut kernel = Fake::with(Vec::new());
        let own = Cgroup { path: "/kubepods/burstable/podx".to_owned(), id: 7, level: 3 };
        hold(&mut kernel, &own).expect("nothing is in force, so nothing is in the way");
        assert_eq!(kernel.in_force(), None);

        let strict = Baseline { sides: Sides(0), sockets_now: 0, sockets_audited: 0 };
        let former = Image {
            cgroups: [(5, Binding::of(PeerId(40)))].into(),
            baselines: [(PeerId(0), strict), (PeerId(40), strict)].into(),
            levels: 1 << 2,
            ..Image::default()
        };
        let mut kernel = Fake::with(vec![former.clone()]);
        hold(&mut kernel, &own).expect("entered");
        let now = kernel.in_force().expect("an image");
        assert_eq!(now.cgroups.get(&7), Some(&Binding::of(Class::Host.id())));
        assert_eq!(now.levels, 0b1100);
        assert_eq!(now.baseline(PeerId(0)), former.baseline(PeerId(0)), "who isn't known stays where they were");
        assert_eq!(now.cgroups.get(&5), former.cgroups.get(&5));

        let known = Image { cgroups: [(7, Binding::of(PeerId(41)))].into(), ..former };
        let mut kernel = Fake::with(vec![known.clone()]);
        hold(&mut kernel, &own).expect("nothing to do");
        assert_eq!(kernel.in_force(), Some(known), "the same pod, started again");
    }
}
