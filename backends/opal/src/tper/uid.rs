//! UIDs of objects, tables and methods (TCG Core 2.01, 5.1.5 and section 6; Opal 2.01, sections 4.2 and 4.3).

/// UIDs that stand alone.
macro_rules! uids {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: u64 = $value;)*
    };
}

uids! {
    /// The SP of the session.
    THIS_SP = 0x0000_0000_0000_0001;
    /// The session manager.
    SESSION_MANAGER = 0xFF;

    /// Table of tables: a row is this with the table's own upper half.
    TABLE = 0x0000_0001_0000_0000;
    /// SPInfo.
    SP_INFO = 0x0000_0002_0000_0000;
    /// SPTemplates.
    SP_TEMPLATES = 0x0000_0003_0000_0000;
    /// MethodID.
    METHOD_ID = 0x0000_0006_0000_0000;
    /// AccessControl.
    ACCESS_CONTROL = 0x0000_0007_0000_0000;
    /// ACE.
    ACE = 0x0000_0008_0000_0000;
    /// Authority.
    AUTHORITY = 0x0000_0009_0000_0000;
    /// C_PIN.
    C_PIN = 0x0000_000B_0000_0000;
    /// SecretProtect.
    SECRET_PROTECT = 0x0000_001D_0000_0000;
    /// TPerInfo.
    TPER_INFO = 0x0000_0201_0000_0000;
    /// Template.
    TEMPLATE = 0x0000_0204_0000_0000;
    /// SP.
    SP = 0x0000_0205_0000_0000;
    /// LockingInfo.
    LOCKING_INFO = 0x0000_0801_0000_0000;
    /// Locking.
    LOCKING = 0x0000_0802_0000_0000;
    /// MBRControl.
    MBR_CONTROL = 0x0000_0803_0000_0000;
    /// MBR, a byte table.
    MBR = 0x0000_0804_0000_0000;
    /// K_AES_256.
    K_AES_256 = 0x0000_0806_0000_0000;
    /// DataStore, a byte table; the next ones have 1002h and so on (Additional DataStore Tables 1.00, 4.2).
    DATA_STORE = 0x0000_1001_0000_0000;
    /// DataRemovalMechanism (Opal 2.01, 4.2.8).
    DATA_REMOVAL = 0x0000_1101_0000_0000;

    /// The Admin SP.
    ADMIN_SP = SP | 1;
    /// The Locking SP.
    LOCKING_SP = SP | 2;
    /// The row of TPerInfo.
    TPER_INFO_ROW = TPER_INFO | 0x0003_0001;

    /// Everybody.
    ANYBODY = AUTHORITY | 1;
    /// The class of administrators.
    ADMINS = AUTHORITY | 2;
    /// The class of makers.
    MAKERS = AUTHORITY | 3;
    /// The owner of the drive.
    SID = AUTHORITY | 6;
    /// The administrator of the Admin SP.
    ADMIN_SP_ADMIN = AUTHORITY | 0x0201;
    /// Who has the label in hand.
    PSID = AUTHORITY | 0x0001_FF01;
    /// Administrators of the Locking SP, from 1 on.
    ADMIN = AUTHORITY | 0x0001_0000;
    /// The class of users; users from 1 on.
    USERS = AUTHORITY | 0x0003_0000;

    /// The PIN of the SID.
    C_PIN_SID = C_PIN | 1;
    /// The PIN that everybody can read.
    C_PIN_MSID = C_PIN | 0x8402;
    /// The PIN of the Admin SP's administrator.
    C_PIN_ADMIN_SP_ADMIN = C_PIN | 0x0201;
    /// The PIN on the label.
    C_PIN_PSID = C_PIN | 0x0001_FF01;

    /// Locking, global range.
    GLOBAL_RANGE = LOCKING | 1;
    /// Locking, ranges from 1 on.
    RANGE = LOCKING | 0x0003_0000;
    /// K_AES_256, global range.
    GLOBAL_KEY = K_AES_256 | 1;
    /// K_AES_256, ranges from 1 on.
    KEY = K_AES_256 | 0x0003_0000;

    /// An ACE's BooleanExpr: an authority follows (Core 5.1.3.3, Authority_object_ref).
    AUTHORITY_REF = 0x0000_0C05;
    /// An ACE's BooleanExpr: 0 AND, 1 OR follows (boolean_ACE).
    BOOLEAN_ACE = 0x0000_040E;
}

/// Methods.
pub mod method {
    uids! {
        /// Properties, of the session manager.
        PROPERTIES = 0xFF01;
        /// StartSession, of the session manager.
        START_SESSION = 0xFF02;
        /// SyncSession, of the session manager.
        SYNC_SESSION = 0xFF03;
        /// CloseSession, of the session manager.
        CLOSE_SESSION = 0xFF06;

        /// Next.
        NEXT = 0x0000_0006_0000_0008;
        /// GetACL.
        GET_ACL = 0x0000_0006_0000_000D;
        /// GenKey.
        GEN_KEY = 0x0000_0006_0000_0010;
        /// RevertSP.
        REVERT_SP = 0x0000_0006_0000_0011;
        /// Get.
        GET = 0x0000_0006_0000_0016;
        /// Set.
        SET = 0x0000_0006_0000_0017;
        /// Authenticate.
        AUTHENTICATE = 0x0000_0006_0000_001C;
        /// Revert.
        REVERT = 0x0000_0006_0000_0202;
        /// Activate.
        ACTIVATE = 0x0000_0006_0000_0203;
        /// Random.
        RANDOM = 0x0000_0006_0000_0601;
        /// Reactivate (Single User Mode 1.00, 3.3).
        REACTIVATE = 0x0000_0006_0000_0801;
        /// Erase (Single User Mode 1.00, 3.3).
        ERASE = 0x0000_0006_0000_0803;
    }
}

/// The table that an object is a row of; a table's own UID stays as it is.
pub const fn table_of(uid: u64) -> u64 {
    uid & 0xFFFF_FFFF_0000_0000
}

/// What numbers an object in its table.
pub const fn row_of(uid: u64) -> u32 {
    uid as u32
}
