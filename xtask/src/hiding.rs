//! Running a task as on a machine without a hypervisor: in a mount namespace whose `/dev` has no device of one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

/// The devices that are not to be there.
const DEVICES: [&str; 2] = ["/dev/kvm", "/dev/mshv"];

/// Puts together a `/dev` of what every program expects in the directory `$1`, moves it over the real one, and runs the rest of its arguments.
const SCRIPT: &str = "set -e
stage=$1
shift
mount -t tmpfs -o mode=755 tmpfs \"$stage\"
for name in null zero full random urandom tty; do
    : >\"$stage/$name\"
    mount --bind \"/dev/$name\" \"$stage/$name\"
done
for name in shm pts; do
    mkdir \"$stage/$name\"
    mount --rbind \"/dev/$name\" \"$stage/$name\"
done
ln -s /proc/self/fd \"$stage/fd\"
ln -s fd/0 \"$stage/stdin\"
ln -s fd/1 \"$stage/stdout\"
ln -s fd/2 \"$stage/stderr\"
mount --move \"$stage\" /dev
exec \"$@\"
";

/// Whether there is something to hide.
pub(crate) fn is_needed() -> bool {
    DEVICES.iter().any(|device| Path::new(device).exists())
}

/// Runs this program with these arguments where there is nothing to hide any more.
pub(crate) fn run_again(
    workspace: &Workspace,
    arguments: impl Iterator<Item = OsString>,
) -> Result<()> {
    let stage = workspace.target_dir().join("dev-without-hypervisor");
    fs::create_dir_all(&stage).with_context(|| format!("could not create {}", stage.display()))?;
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !is_root()? {
        // In a user namespace of its own anybody may mount.
        command.arg("--map-root-user");
    }
    command
        .args(["sh", "-c", SCRIPT, "sh"])
        .arg(stage)
        .arg(program)
        .args(arguments);
    process::run_quietly(&mut command)
        .context("in a mount namespace without a hypervisor (`unshare` is in util-linux)")
}

fn is_root() -> Result<bool> {
    let process = fs::metadata("/proc/self").context("this process has no entry in /proc")?;
    Ok(process.uid() == 0)
}
