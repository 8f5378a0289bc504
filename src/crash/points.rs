//! The table of all crash points. The C numbers are those of the fault model; not every number has an
//! effect yet:
//!
//! - C5, C20 (Kubernetes claims) and C23 (pools): there are none;
//! - C9 (volumes, NICs, tags after the create): `local` makes a VM in one call; C10 (the address) is
//!   recorded together with C8.

use crate::pod::phase::{Made, Phase};

/// Before or after an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nothing of it has happened.
    Before,
    /// It has taken effect, and nothing has come of that.
    After,
}

/// Where a point lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In what sees nothing but its world: a simulation comes by, too.
    World,
    /// In the node process, below the world.
    Node,
    /// In the relay process.
    Relay,
}

macro_rules! points {
    ($($point:ident $name:literal $number:literal $place:ident $text:literal;)*) => {
        /// A crash point.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $(#[doc = $text] $point,)*
        }

        const ALL: &[Point] = &[$(Point::$point,)*];

        impl Point {
            /// As it is asked for and logged: `create.after`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }

            /// Its number in the fault model.
            pub fn number(self) -> &'static str {
                match self { $(Self::$point => $number,)* }
            }

            /// Who comes by.
            pub fn place(self) -> Place {
                match self { $(Self::$point => Place::$place,)* }
            }

            /// What has happened when it is reached, for people.
            pub fn text(self) -> &'static str {
                match self { $(Self::$point => $text,)* }
            }
        }
    };
}

points! {
    CreateVmBefore "create-vm.before" "C1" World "CreateVM came, nothing is known of it";
    CreateVmAfter "create-vm.after" "C3" World "CreateVM is done, its answer is not on its way";
    ReserveBefore "reserve.before" "C11" World "a VXLAN id is about to be taken";
    ReserveAfter "reserve.after" "C11" World "a VXLAN id is taken, in memory only";
    PlanBefore "plan.before" "C4" World "the VM's certificate is about to be made";
    PlanAfter "plan.after" "C4" World "the VM's certificate is made and not written down";
    SavePreparedBefore "save-prepared.before" "C2" World "a sandbox is about to be written down";
    SavePreparedAfter "save-prepared.after" "C2" World "a sandbox is written down";
    OpenBefore "open.before" "C3" World "the relay is about to be told to listen";
    OpenAfter "open.after" "C3" World "the relay listens";
    StartVmBefore "start-vm.before" "C6" World "StartVM came, nothing is done";
    StartVmAfter "start-vm.after" "C15" World "the pod runs, StartVM's answer is not on its way";
    SaveAttemptBefore "save-attempt.before" "C6" World "an attempt is about to be written down";
    SaveAttemptAfter "save-attempt.after" "C6" World "an attempt is written down and not made";
    CreateBefore "create.before" "C6" World "the create is about to be sent";
    CreateAfter "create.after" "C7" World "the create's reply is here and not written down";
    CreateSentBefore "create-sent.before" "C6" World "the create's task has begun";
    CreateSentAfter "create-sent.after" "C6" World "the create is under way, without a reply";
    SaveMadeBefore "save-made.before" "C7" World "the VM's id and address are about to be kept";
    SaveMadeAfter "save-made.after" "C8" World "the VM's id and address are kept";
    AttachBefore "attach.before" "C10" World "the tunnel is about to be made";
    AttachAfter "attach.after" "C12" World "the tunnel stands";
    DeliverBefore "deliver.before" "C13" World "files without room in the user data are about to be sent";
    DeliverAfter "deliver.after" "C13" World "the VM has them, nothing says so here";
    ReadyBefore "ready.before" "C13" World "the VM is about to be probed";
    ReadyAfter "ready.after" "C13" World "the VM has answered";
    ConnectBefore "connect.before" "C14" World "the relay is about to be told to dial the VM";
    ConnectAfter "connect.after" "C14" World "the relay has its link";
    SaveRunningBefore "save-running.before" "C14" World "running is about to be written down";
    SaveRunningAfter "save-running.after" "C15" World "running is written down, nobody was told";
    StopVmBefore "stop-vm.before" "C16" World "StopVM came, nothing is done";
    StopVmAfter "stop-vm.after" "C16" World "StopVM is done, its answer is not on its way";
    SaveDeletingBefore "save-deleting.before" "C16" World "the end is about to be written down";
    SaveDeletingAfter "save-deleting.after" "C16" World "the end is written down";
    CloseBefore "close.before" "C17" World "the relay is about to be told to close";
    CloseAfter "close.after" "C17" World "the relay has closed";
    DetachBefore "detach.before" "C18" World "the tunnel is about to go";
    DetachAfter "detach.after" "C18" World "the tunnel is gone";
    DeleteBefore "delete.before" "C19" World "the delete is about to be sent";
    DeleteAfter "delete.after" "C19" World "the delete's reply is here";
    DeleteSentAfter "delete-sent.after" "C19" World "the delete is under way, without a reply";
    ListBefore "list.before" "C19" World "a list is about to confirm that a VM is gone";
    ListAfter "list.after" "C19" World "a list was asked whether a VM is gone";
    ForgetBefore "forget.before" "C21" World "a record is about to go";
    ForgetAfter "forget.after" "C21" World "a record is gone, its sandbox is still known";
    LoadBefore "load.before" "C2" World "records are about to be read";
    LoadAfter "load.after" "C2" World "records are read";
    LeftoversBefore "left-overs.before" "C11" World "the kernel is about to be compared with records";
    LeftoversAfter "left-overs.after" "C11" World "what no record knows is gone from the kernel";
    TakeUpBefore "take-up.before" "C2" World "a record is about to be taken up";
    TakeUpAfter "take-up.after" "C2" World "a record is taken up";
    VerifyBefore "verify.before" "C12" World "a running pod's tunnel is about to be looked at";
    VerifyAfter "verify.after" "C12" World "a running pod's tunnel was looked at";
    SweepListBefore "sweep-list.before" "C22" World "the sweep is about to list the cloud";
    SweepListAfter "sweep-list.after" "C22" World "the sweep has the cloud's list";
    SweepDeleteBefore "sweep-delete.before" "C22" World "the sweep has decided to delete";
    SweepDeleteAfter "sweep-delete.after" "C22" World "the sweep has deleted";
    OrphanCloseBefore "orphan-close.before" "C17" World "a socket of no sandbox is about to close";
    OrphanCloseAfter "orphan-close.after" "C17" World "a socket of no sandbox is closed";

    StateLockBefore "state-lock.before" "C24" Node "the state directory is about to be locked";
    StateLockAfter "state-lock.after" "C24" Node "the state directory is ours";
    InstallationBefore "installation.before" "C24" Node "the installation id is about to be kept";
    InstallationRename "installation.rename" "C24" Node "the installation id is written, not in place";
    InstallationAfter "installation.after" "C24" Node "the installation id is kept";
    EpochBefore "epoch.before" "C24" Node "this start's epoch is about to be kept";
    EpochRename "epoch.rename" "C24" Node "this start's epoch is written, not in place";
    EpochAfter "epoch.after" "C24" Node "this start's epoch is kept";
    KeyBefore "key.before" "C4" Node "one of our keys is about to be kept";
    KeyAfter "key.after" "C4" Node "one of our keys is kept, its certificate is not there";
    CertificateBefore "certificate.before" "C4" Node "one of our certificates is about to be kept";
    CertificateAfter "certificate.after" "C4" Node "one of our certificates is kept";
    PemRename "pem.rename" "C4" Node "a key or certificate is written, not in place";
    NodeSocketBefore "node-socket.before" "C3" Node "the node's socket is about to be made";
    NodeSocketAfter "node-socket.after" "C3" Node "the node's socket is there";
    RecordDirectoryBefore "record-directory.before" "C2" Node "a record's directory is about to be made";
    RecordDirectoryAfter "record-directory.after" "C2" Node "a record's directory is there";
    RecordWriteBefore "record-write.before" "C2" Node "a record's new file is about to be written";
    RecordWriteAfter "record-write.after" "C2" Node "a record's new file is written";
    RecordFsyncBefore "record-fsync.before" "C2" Node "a record's new file is about to be synced";
    RecordFsyncAfter "record-fsync.after" "C2" Node "a record's new file is synced";
    RecordRenameBefore "record-rename.before" "C2" Node "a record's new file is about to take its place";
    RecordRenameAfter "record-rename.after" "C2" Node "a record's new file has taken its place";
    RecordSyncBefore "record-sync.before" "C2" Node "a record's directory is about to be synced";
    RecordSyncAfter "record-sync.after" "C2" Node "a record's directory is synced";
    RecordUnlinkBefore "record-unlink.before" "C21" Node "a record's file is about to go";
    RecordUnlinkAfter "record-unlink.after" "C21" Node "a record's file is gone, its directory is not";
    RecordRmdirBefore "record-rmdir.before" "C21" Node "a record's directory is about to go";
    RecordRmdirAfter "record-rmdir.after" "C21" Node "a record's directory is gone";
    SetAsideBefore "set-aside.before" "C24" Node "a damaged record is about to be set aside";
    SetAsideAfter "set-aside.after" "C24" Node "a damaged record is set aside";
    AnswerBefore "answer.before" "C15" Node "an answer to a shim is about to be written";
    AnswerAfter "answer.after" "C15" Node "an answer to a shim is written";
    GuardAllowBefore "guard-allow.before" "C12" Node "a VM's address is about to be let in";
    GuardAllowAfter "guard-allow.after" "C12" Node "a VM's address is let in";
    DeviceMakeBefore "device-make.before" "C12" Node "the VXLAN device is about to be made";
    DeviceMakeAfter "device-make.after" "C12" Node "the VXLAN device is in the pod's namespace";
    DeviceMarkBefore "device-mark.before" "C12" Node "the device is about to get its owner's mark";
    DeviceMarkAfter "device-mark.after" "C12" Node "the device has its owner's mark";
    DeviceMtuBefore "device-mtu.before" "C12" Node "the device's MTU is about to be set";
    DeviceMtuAfter "device-mtu.after" "C12" Node "the device's MTU is set";
    PinSetBefore "pin-set.before" "C12" Node "filter and forwarding are about to be made";
    PinSetAfter "pin-set.after" "C12" Node "filter and forwarding stand, the device is down";
    DeviceUpBefore "device-up.before" "C12" Node "the device is about to be set up";
    DeviceUpAfter "device-up.after" "C12" Node "the device is up";
    DeviceDownBefore "device-down.before" "C18" Node "the device is about to be set down";
    DeviceDownAfter "device-down.after" "C18" Node "the device is down";
    PinClearBefore "pin-clear.before" "C18" Node "filter and forwarding are about to go";
    PinClearAfter "pin-clear.after" "C18" Node "filter and forwarding are gone";
    GuardRevokeBefore "guard-revoke.before" "C18" Node "a VM's address is about to be shut out";
    GuardRevokeAfter "guard-revoke.after" "C18" Node "a VM's address is shut out";
    DeviceDeleteBefore "device-delete.before" "C18" Node "the VXLAN device is about to go";
    DeviceDeleteAfter "device-delete.after" "C18" Node "the VXLAN device is gone";
    LeftoverBefore "left-over.before" "C11" Node "a left-over in the kernel is about to go";
    LeftoverAfter "left-over.after" "C11" Node "a left-over in the kernel is gone";

    SocketBindBefore "socket-bind.before" "C3" Relay "a socket is about to be bound";
    SocketBindAfter "socket-bind.after" "C3" Relay "a socket is bound, not in place";
    SocketRenameAfter "socket-rename.after" "C3" Relay "a socket is in place and not served";
    SocketRemoveBefore "socket-remove.before" "C17" Relay "a socket's file is about to go";
    SocketRemoveAfter "socket-remove.after" "C17" Relay "a socket's file is gone";
    RelayOpenBefore "relay-open.before" "C3" Relay "Open came, nothing is done";
    RelayOpenAfter "relay-open.after" "C3" Relay "a sandbox is open, the node was not told";
    RelayDialBefore "relay-dial.before" "C14" Relay "Connect came, the VM is about to be dialled";
    RelayDialAfter "relay-dial.after" "C14" Relay "the link stands, the node was not told";
    RelayCloseBefore "relay-close.before" "C17" Relay "Close came, nothing is done";
    RelayCloseAfter "relay-close.after" "C17" Relay "a sandbox is closed, the node was not told";
}

impl Point {
    /// All there are, in the order of the table.
    pub fn all() -> &'static [Point] {
        ALL
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Point> {
        ALL.iter().copied().find(|p| p.name() == name)
    }

    /// The one on that side of a step, if the step has points.
    pub fn of(step: &str, side: Side) -> Option<Point> {
        let side = match side {
            Side::Before => "before",
            Side::After => "after",
        };
        ALL.iter().copied().find(|p| p.name().split_once('.') == Some((step, side)))
    }

    /// The one on that side of the save of a record in that phase.
    pub fn of_save(phase: &Phase, side: Side) -> Point {
        let both = match phase {
            Phase::Prepared => [Self::SavePreparedBefore, Self::SavePreparedAfter],
            Phase::Launching { made: Made::Known(_), .. } => {
                [Self::SaveMadeBefore, Self::SaveMadeAfter]
            }
            Phase::Launching { .. } => [Self::SaveAttemptBefore, Self::SaveAttemptAfter],
            Phase::Running { .. } => [Self::SaveRunningBefore, Self::SaveRunningAfter],
            Phase::Deleting { .. } => [Self::SaveDeletingBefore, Self::SaveDeletingAfter],
        };
        let [before, after] = both;
        if side == Side::Before { before } else { after }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        let names: BTreeSet<_> = Point::all().iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::all().len());
        for point in Point::all() {
            assert_eq!(Point::named(point.name()), Some(*point));
        }
    }

    #[test]
    fn every_step_that_is_observed_has_both_its_points() {
        let steps = [
            "plan", "open", "create", "attach", "deliver", "ready", "connect", "close", "detach",
            "delete", "list", "forget", "verify",
        ];
        for step in steps {
            assert!(Point::of(step, Side::Before).is_some(), "{step}");
            assert!(Point::of(step, Side::After).is_some(), "{step}");
        }
        assert_eq!(Point::of("inspect", Side::Before), None, "it only reads");
    }

    #[test]
    fn the_tunnels_points_are_in_the_table() {
        for name in peerpod_tunnel::crash::POINTS {
            assert!(Point::named(name).is_some(), "{name}");
        }
    }
}
