//! The spec's hooks. See the runtime-spec's `config.md#posix-platform-hooks`.

use oci_spec::runtime::{Hook as SpecHook, Hooks as SpecHooks};

use super::error::{PlanError, absolute, no_nul};
use super::{Hook, Hooks};

/// The hooks of a spec, each point in its order.
pub(super) fn from_spec(hooks: Option<&SpecHooks>) -> Result<Hooks, PlanError> {
    let Some(hooks) = hooks else { return Ok(Hooks::default()) };
    Ok(Hooks {
        // The type crate marks the point as deprecated; podman still uses it.
        #[allow(deprecated)]
        prestart: point("prestart", hooks.prestart().as_deref())?,
        create_runtime: point("createRuntime", hooks.create_runtime().as_deref())?,
        create_container: point("createContainer", hooks.create_container().as_deref())?,
        start_container: point("startContainer", hooks.start_container().as_deref())?,
        poststart: point("poststart", hooks.poststart().as_deref())?,
        poststop: point("poststop", hooks.poststop().as_deref())?,
    })
}

impl Hooks {
    /// No hook runs for longer than `seconds`, whatever it gives itself.
    pub(crate) fn bound(&mut self, seconds: u64) {
        let Self { prestart, create_runtime, create_container, start_container, poststart, poststop } = self;
        for hook in [prestart, create_runtime, create_container, start_container, poststart, poststop]
            .into_iter()
            .flatten()
        {
            hook.timeout_seconds = Some(hook.timeout_seconds.map_or(seconds, |own| own.min(seconds)));
        }
    }
}

fn point(name: &str, hooks: Option<&[SpecHook]>) -> Result<Vec<Hook>, PlanError> {
    let one = |(index, hook): (usize, &SpecHook)| {
        let field = |part: &str| format!("hooks.{name}[{index}].{part}");
        absolute(|| field("path"), hook.path())?;
        let args = hook.args().clone().unwrap_or_default();
        let env = hook.env().clone();
        for text in args.iter().chain(env.iter().flatten()) {
            no_nul(|| format!("hooks.{name}[{index}]"), text)?;
        }
        let timeout_seconds = match hook.timeout() {
            None => None,
            Some(seconds) => {
                Some(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
                    PlanError::invalid(field("timeout"), format!("{seconds} is not greater than zero"))
                })?)
            }
        };
        Ok(Hook { path: hook.path().clone(), args, env, timeout_seconds })
    };
    hooks.unwrap_or_default().iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_hook_is_without_a_bound() {
        let hook =
            |timeout_seconds| Hook { path: "/hook".into(), args: Vec::new(), env: None, timeout_seconds };
        let mut hooks = Hooks {
            prestart: vec![hook(None)],
            create_runtime: vec![hook(Some(5)), hook(Some(600))],
            create_container: vec![hook(None)],
            start_container: vec![hook(None)],
            poststart: vec![hook(None)],
            poststop: vec![hook(Some(61))],
        };
        hooks.bound(60);
        let seconds = |hooks: &[Hook]| hooks.iter().map(|hook| hook.timeout_seconds).collect::<Vec<_>>();
        assert_eq!(seconds(&hooks.create_runtime), [Some(5), Some(60)]);
        for point in [
            &hooks.prestart,
            &hooks.create_container,
            &hooks.start_container,
            &hooks.poststart,
            &hooks.poststop,
        ] {
            assert_eq!(seconds(point), [Some(60)]);
        }
    }
}
