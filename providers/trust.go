package providers

import (
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// CheckOwner refuses, as Denied, a file or directory that others than root and
// the process's own user can change: who writes it decides what the broker
// believes. The caller names the file.
func CheckOwner(info fs.FileInfo) error { return checkOwner(info, os.Geteuid()) }

func checkOwner(info fs.FileInfo, us int) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != us {
		return &Error{Kind: Denied, Message: "it belongs to uid " + strconv.Itoa(int(st.Uid)),
			Hint: "it has to be root's or the broker's own: chown it"}
	}
	// A sticky directory of others' files would still let them add one.
	if info.Mode().Perm()&0o022 != 0 {
		return &Error{Kind: Denied, Message: "its group or others may write it", Hint: "chmod go-w it"}
	}
	return nil
}
