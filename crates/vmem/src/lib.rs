//! Page-table codecs, walker and mapper for amd64 and i686.
