//! A file system in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use media::{Entry, Error, FileSystem, Kind, Metadata, Node, NodeRef, Result};

/// Names in the order in which they were given.
#[derive(Clone, Default)]
pub struct Tree {
    root: Folder,
    label: Option<String>,
    uuid: Option<String>,
}

#[derive(Clone, Default)]
struct Folder {
    order: Vec<String>,
    children: BTreeMap<String, Child>,
}

#[derive(Clone)]
enum Child {
    Folder(Folder),
    File(Vec<u8>),
}

impl Tree {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let mut tree = Self::default();
        for (path, bytes) in files {
            tree.root.add(path.trim_start_matches('/'), bytes);
        }
        tree
    }
}

impl Folder {
    fn add(&mut self, path: &str, bytes: &[u8]) {
        let (name, rest) = path.split_once('/').map_or((path, None), |(n, r)| (n, Some(r)));
        if !self.children.contains_key(name) {
            self.order.push(name.to_owned());
        }
        match rest {
            None => drop(self.children.insert(name.to_owned(), Child::File(bytes.to_vec()))),
            Some(rest) => {
                let child = self.children.entry(name.to_owned()).or_insert(Child::Folder(Folder::default()));
                if let Child::Folder(folder) = child
                    && !rest.is_empty()
                {
                    folder.add(rest, bytes);
                }
            }
        }
    }
}

impl FileSystem for Tree {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn root(&self) -> Result<NodeRef> {
        Ok(Arc::new(Child::Folder(self.root.clone())))
    }
}

impl Child {
    fn kind(&self) -> Kind {
        match self {
            Self::Folder(_) => Kind::Directory,
            Self::File(_) => Kind::File,
        }
    }
}

impl Node for Child {
    fn metadata(&self) -> Result<Metadata> {
        let size = match self {
            Self::Folder(_) => 0,
            Self::File(bytes) => bytes.len() as u64,
        };
        Ok(Metadata { kind: self.kind(), size, modified: Some(1_795_521_600) })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let Self::File(bytes) = self else { return Err(Error::IsADirectory(String::new())) };
        let offset = offset as usize;
        to.copy_from_slice(&bytes[offset..offset + to.len()]);
        Ok(())
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let Self::Folder(folder) = self else { return Err(Error::NotADirectory(String::new())) };
        for name in &folder.order {
            let entry = Entry { name: name.clone().into_bytes(), kind: Some(folder.children[name].kind()) };
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let Self::Folder(folder) = self else { return Err(Error::NotADirectory(String::new())) };
        let child = std::str::from_utf8(name).ok().and_then(|name| folder.children.get(name));
        Ok(child.map(|child| Arc::new(child.clone()) as NodeRef))
    }

    fn link(&self) -> Result<Vec<u8>> {
        Err(Error::NotAFile(String::new()))
    }
}
