//! Work that nobody waits for, such as the disk's: it is done beside the loop.

use std::thread::{Builder, JoinHandle};

/// One piece of work at a time, so that of two that write the same file the later one stays.
#[derive(Default)]
pub(super) struct Aside(Option<JoinHandle<anyhow::Result<()>>>);

impl Aside {
    /// Whether something is going on.
    pub(super) fn is_busy(&self) -> bool {
        self.0.as_ref().is_some_and(|going| !going.is_finished())
    }

    /// Begins, after what was begun before has ended.
    ///
    /// # Errors
    /// Those of what was begun before, or when there is no thread to be had. Then nothing was begun.
    pub(super) fn begin(&mut self, work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
        self.finish()?;
        self.0 = Some(Builder::new().name("aside".to_owned()).spawn(work)?);
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// Its own.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        let Some(going) = self.0.take() else { return Ok(()) };
        going.join().map_err(|_| anyhow::anyhow!("a thread of the agent is lost"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_next_begins_when_the_last_has_ended_and_hears_how() {
        let mut aside = Aside::default();
        let (go, wait) = mpsc::channel::<()>();
        aside.begin(move || Ok(wait.recv()?)).expect("a thread");
        assert!(aside.is_busy());
        drop(go);
        assert!(aside.begin(|| Ok(())).is_err(), "the one before failed");
        aside.begin(|| Ok(())).expect("begun");
        aside.finish().expect("done");
        assert!(!aside.is_busy());
    }
}
