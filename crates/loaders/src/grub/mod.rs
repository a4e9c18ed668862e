//! GRUB's shell, menu and script language.
