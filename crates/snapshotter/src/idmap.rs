//! The labels by which containerd asks for a snapshot whose ids are mapped.
//!
//! Owns reading `containerd.io/snapshot/uidmapping` and `…/gidmapping`: `CONTAINER:HOST:LENGTH`, several joined by
//! commas. Says who owns the root of a mapped snapshot. The mapping itself is done by whoever mounts.

use plyfs_format::idmap::{IdMap, IdRange};

use crate::error::{Error, Result};
use crate::info::Labels;

const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// How a snapshot's ids are mapped, in containerd's words and in ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    uid_text: String,
    gid_text: String,
    uids: IdMap,
    gids: IdMap,
}

impl Mapping {
    /// Reads the labels; none if neither is there, an error if only one is or if root is not mapped.
    pub fn from_labels(labels: &Labels) -> Result<Option<Self>> {
        let (uid, gid) = match (labels.get(UID_LABEL), labels.get(GID_LABEL)) {
            (None, None) => return Ok(None),
            (Some(uid), Some(gid)) => (uid, gid),
            _ => {
                return Err(Error::InvalidArgument(format!("{UID_LABEL} and {GID_LABEL} go together")));
            }
        };
        let mapping = Self {
            uid_text: uid.clone(),
            gid_text: gid.clone(),
            uids: parse(UID_LABEL, uid)?,
            gids: parse(GID_LABEL, gid)?,
        };
        mapping.root()?;
        Ok(Some(mapping))
    }

    /// The host's ids of the container's root.
    pub fn root(&self) -> Result<(u32, u32)> {
        let unmapped = || Error::InvalidArgument("the id mapping does not map root".into());
        let uid = self.uids.to_shown(0).ok_or_else(unmapped)?;
        let gid = self.gids.to_shown(0).ok_or_else(unmapped)?;
        Ok((uid, gid))
    }

    /// The options by which containerd (2.0 and later) idmaps the lower layers itself.
    pub fn containerd_options(&self) -> [String; 2] {
        [format!("uidmap={}", self.uid_text), format!("gidmap={}", self.gid_text)]
    }

    /// The options by which plyfs maps all layers.
    pub fn plyfs_options(&self) -> [String; 2] {
        [format!("uidmapping={}", triples(&self.uids)), format!("gidmapping={}", triples(&self.gids))]
    }
}

fn parse(label: &str, text: &str) -> Result<IdMap> {
    let bad = |why: &dyn std::fmt::Display| Error::InvalidArgument(format!("label {label}={text:?}: {why}"));
    let ranges = text.split(',').map(range).collect::<Option<Vec<_>>>();
    let ranges = ranges.ok_or_else(|| bad(&"not CONTAINER:HOST:LENGTH"))?;
    IdMap::new(ranges).map_err(|e| bad(&e))
}

fn range(text: &str) -> Option<IdRange> {
    let mut numbers = text.split(':').map(|number| number.parse::<u32>().ok());
    let range = IdRange { disk: numbers.next()??, shown: numbers.next()??, length: numbers.next()?? };
    numbers.next().is_none().then_some(range)
}

fn triples(map: &IdMap) -> String {
    let ranges = map.ranges().iter().map(|r| format!("{}:{}:{}", r.disk, r.shown, r.length));
    ranges.collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(uid: &str, gid: &str) -> Labels {
        Labels::from([(UID_LABEL.into(), uid.into()), (GID_LABEL.into(), gid.into())])
    }

    #[test]
    fn a_mapping_of_several_ranges_is_told_in_both_languages() {
        let mapping = Mapping::from_labels(&labels("0:1000:1,1:5000:99", "0:2000:100")).unwrap().unwrap();
        assert_eq!(mapping.root().unwrap(), (1000, 2000));
        assert_eq!(mapping.containerd_options(), ["uidmap=0:1000:1,1:5000:99", "gidmap=0:2000:100"]);
        assert_eq!(mapping.plyfs_options(), ["uidmapping=0:1000:1:1:5000:99", "gidmapping=0:2000:100"]);
    }

    #[test]
    fn half_a_mapping_one_without_root_and_nonsense_are_refused() {
        assert_eq!(Mapping::from_labels(&Labels::new()).unwrap(), None);
        let mut half = labels("0:1:1", "0:1:1");
        half.remove(GID_LABEL);
        assert!(Mapping::from_labels(&half).is_err());
        for (uid, gid) in
            [("1:1000:5", "0:0:1"), ("x", "0:0:1"), ("0:1", "0:0:1"), ("0:1:1:2", "0:0:1"), ("", "0:0:1")]
        {
            assert!(Mapping::from_labels(&labels(uid, gid)).is_err(), "{uid} {gid}");
        }
    }
}
