//! A store that does not exist: what needs something in it fails as in an empty one, and makes none.
//!
//! Only commands that bring something in, or that look at the store itself, make it (`Store::open`).

use std::io::ErrorKind;
use std::path::Path;

use plyfs_store::Error;

use super::args::StoreCommand;

/// The failure of a command that needs something where nothing is. `None` if the store exists or the command may make it.
pub fn failure(root: &Path, command: &StoreCommand) -> Option<Error> {
    let absent = root.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let (what, name) = needed(command).filter(|_| absent)?;
    Some(Error::NotFound { what, name: name.to_owned() })
}

fn needed(command: &StoreCommand) -> Option<(&'static str, &str)> {
    use StoreCommand as C;
    Some(match command {
        C::Create { image, .. } | C::Tag { image, .. } | C::History { image } => ("image", image),
        C::Run(run) => ("image", &run.image),
        C::Push(push) => ("image", &push.image),
        C::Rmi { images, .. } => ("image", images.first()?),
        C::Save(save) => ("image", save.images.first()?),
        C::Inspect { names } => ("image", names.first()?),
        C::Export { name, .. } => ("image", name),
        C::Mount { container }
        | C::Umount { container, .. }
        | C::Diff { container }
        | C::Logs { container, .. }
        | C::Supervise { container } => ("container", container),
        C::Commit(commit) => ("container", &commit.container),
        C::Exec(exec) => ("container", &exec.container),
        C::Rm { containers, .. } | C::Stop { containers, .. } => ("container", containers.first()?),
        C::Import(_) | C::Pull(_) | C::Load { .. } | C::Cp { .. } => return None,
        C::Images | C::Ps { .. } | C::Info | C::Df | C::Gc | C::Check { .. } => return None,
    })
}
