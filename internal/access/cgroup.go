package access

import (
	"strconv"
	"strings"
)

// nobody is the id that stands for none.
const nobody = ^uint32(0)

// cgroup is what a process's place in the cgroup tree says of it.
type cgroup struct {
	unit      string // of the system manager
	userUnit  string // of the user manager of manager
	manager   uint32 // whose user manager is on the path, or nobody
	container bool
}

// parseCgroup reads a /proc/PID/cgroup. For units only the v2 tree counts
// ("0::"): systemd owns it, also where it keeps v1 trees beside it ("hybrid").
// The path is as we see it, so a cgroup namespace hides nothing.
func parseCgroup(text string) cgroup {
	g := cgroup{manager: nobody}
	for l := range strings.Lines(text) {
		// number:controllers:path; a path may hold colons, not line ends.
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		g.container = g.container || inContainer(f[2])
		if f[0] == "0" && f[1] == "" {
			g.unit, g.userUnit, g.manager = units(f[2])
		}
	}
	return g
}

// units follows cg_path_get_unit of systemd: the first component below the
// slices is the unit. What comes further down was made by that unit, under
// whatever name it liked, and counts only below a user manager, as that
// manager's.
func units(path string) (unit, userUnit string, manager uint32) {
	first, rest := belowSlices(path[1:])
	if uid, ok := userManager(first); ok {
		userUnit, _ = belowSlices(rest)
		return "", userUnit, uid
	}
	return first, "", nobody
}

// belowSlices is the first component that is no slice, if it is a unit's, and
// the path below it.
func belowSlices(path string) (unit, rest string) {
	for {
		unit, path, _ = strings.Cut(path, "/")
		if isUnit(unit) && isSlice(unit) {
			continue
		}
		// systemd puts an underscore before names that the kernel uses.
		if unit = strings.TrimPrefix(unit, "_"); !isUnit(unit) || isSlice(unit) {
			return "", ""
		}
		return unit, path
	}
}

func isSlice(name string) bool { return strings.HasSuffix(name, ".slice") }

// userManager is the uid of user@UID.service.
func userManager(unit string) (uint32, bool) {
	name, ok := strings.CutPrefix(unit, "user@")
	name, service := strings.CutSuffix(name, ".service")
	uid, err := strconv.ParseUint(name, 10, 32)
	return uint32(uid), ok && service && err == nil
}

const unitCharacters = `abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\@`

// isUnit follows unit_name_is_valid of systemd for names that can run: plain
// or an instance, no template.
func isUnit(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 || len(name) > 255 {
		return false
	}
	switch name[dot+1:] {
	case "service", "scope", "slice", "socket", "mount", "swap":
	default:
		return false
	}
	if strings.Trim(name, unitCharacters) != "" {
		return false
	}
	at := strings.IndexByte(name, '@')
	return at < 0 || 0 < at && at < dot-1
}

// inContainer knows the places where container engines put their processes.
// It only ever takes something away, so a place that it does not know is
// caught by the pid namespace, and a name made up hurts its maker alone.
func inContainer(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		switch name {
		case "machine.slice", "docker", "lxc":
			return true
		}
		for _, p := range []string{"docker-", "libpod-", "crio-", "cri-containerd-", "nerdctl-", "kubepods", "lxc.payload", "systemd-nspawn@"} {
			if strings.HasPrefix(name, p) {
				return true
			}
		}
	}
	return false
}
