// Package platform says what this machine offers of what the daemon makes use
// of, and what becomes of the rest. Everything is tried: versions say little,
// since distributions take parts of newer kernels into older ones, and
// sandboxes take them away.
package platform

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"credentialbroker/internal/access"
	"credentialbroker/internal/secret"
)

// A Feature is one thing that the daemon uses, or would if it were there.
type Feature struct {
	// Name is its key, in the log and in the status: it stays the same.
	Name string
	// Used is what serves for it here; "none": nothing does.
	Used string
	// Lost is what the daemon cannot do therefore, and what helps; empty: it can
	// do everything.
	Lost string
	// Severe: nobody gets a token.
	Severe bool
}

// Host is the machine. The zero value is this one.
type Host struct {
	// Root is what stands before /proc and /sys; zero: nothing.
	Root string
	// Label gives the SELinux context of a file; zero: its extended attribute.
	Label func(path string) (string, error)
}

// Look tries everything. The order is always the same.
func (h Host) Look() []Feature {
	caller, number := holding(access.ProbeHolding())
	return []Feature{caller, number, memory(), h.units(), sockDiag(), credentials(), manager(), h.selinux()}
}

// String is the features as one line.
func String(list []Feature) string {
	var words []string
	for _, f := range list {
		words = append(words, f.Name+"="+f.Used)
	}
	return strings.Join(words, " ")
}

func holding(h access.Holding) (caller, number Feature) {
	caller, number = Feature{Name: "caller", Used: h.By}, Feature{Name: "process_number", Used: "pidfs"}
	if h.Err != nil {
		caller.Used, caller.Severe = "none", true
		caller.Lost = fmt.Sprintf("no caller can be identified, so nobody gets a token (%v): Linux 5.3 or later is needed, and a sandbox that allows pidfd_open", h.Err)
	}
	if !h.Numbered {
		number.Used = "none" // each connection of a process reads /proc anew
	}
	return caller, number
}

// memory makes a secret to see which kind of memory it gets.
func memory() Feature {
	probe := secret.New([]byte{0})
	defer probe.Wipe()
	held := secret.Protected()
	f := Feature{Name: "secret_memory"}
	for _, kind := range []secret.Protection{secret.MemfdSecret, secret.Mlock, secret.Unlocked} { // the weakest there is counts
		if held[kind] > 0 {
			f.Used = string(kind)
		}
	}
	if f.Used == string(secret.Unlocked) {
		f.Lost = "some secrets are in memory that may be swapped: LimitMEMLOCK= of the unit is too small, or the daemon does not run as a unit"
	}
	return f
}

// units says whether the kernel tells which unit a process belongs to. systemd
// owns the second version of control groups also where it keeps the first
// beside it (hybrid).
func (h Host) units() Feature {
	f := Feature{Name: "units", Used: "none"}
	text, err := os.ReadFile(h.path("/proc/self/cgroup"))
	lines, ours := 0, false
	for l := range strings.Lines(string(text)) {
		lines++
		ours = ours || strings.HasPrefix(l, "0::")
	}
	switch {
	case err == nil && ours && lines == 1:
		f.Used = "cgroup2"
	case err == nil && ours:
		f.Used = "hybrid"
	default:
		f.Lost = "allow entries with unit: match nobody: boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
	}
	return f
}

// sockDiag is needed by clients with a port on loopback alone; they say more.
func sockDiag() Feature {
	d, err := access.OpenSockDiag()
	if err != nil {
		return Feature{Name: "loopback_caller", Used: "none"}
	}
	_ = d.Close()
	return Feature{Name: "loopback_caller", Used: "sock_diag"}
}

// credentials are those of the unit (systemd.exec(5), LoadCredential=).
func credentials() Feature {
	f := Feature{Name: "credentials", Used: "none"}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		f.Used = "systemd"
		if _, err := os.ReadDir(dir); err != nil {
			f.Used, f.Lost = "none", "the credentials of the unit cannot be read: "+err.Error()
		}
	}
	return f
}

// manager is who is told that the daemon is ready (sd_notify(3)).
func manager() Feature {
	f := Feature{Name: "service_manager", Used: "none"}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		f.Used = "sd_notify"
		if os.Getenv("WATCHDOG_USEC") != "" {
			f.Used = "sd_notify+watchdog"
		}
	}
	return f
}

func (h Host) path(name string) string { return filepath.Join("/", h.Root, name) }
