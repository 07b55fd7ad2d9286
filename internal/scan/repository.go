package scan

import (
	"os"
	"path/filepath"
	"strings"
)

// repository returns git's directory of the repository in which dir lies, at
// any depth: a work tree, one of several, or the repository itself. Empty: it
// lies in none.
func repository(dir string) string {
	for {
		for _, git := range []string{dir, filepath.Join(dir, ".git"), elsewhere(filepath.Join(dir, ".git"))} {
			if git != "" && isRepository(git) {
				return git
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

func isRepository(dir string) bool {
	for _, name := range []string{"HEAD", "objects", "refs"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// elsewhere returns the repository that a file called .git names
// (gitrepository-layout(5)): that of a submodule, or the common one of several
// work trees. Empty: name is no such file.
func elsewhere(name string) string {
	target := link(name, "gitdir: ")
	if target == "" {
		return ""
	}
	if common := link(filepath.Join(target, "commondir"), ""); common != "" {
		return common
	}
	return target
}

// link reads a small file that names a place, after a prefix.
func link(name, prefix string) string {
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 4096 {
		return ""
	}
	b, err := os.ReadFile(name) // #nosec G304 -- what it names is looked at, and no more
	target, ok := strings.CutPrefix(strings.TrimRight(string(b), "\r\n"), prefix)
	if err != nil || !ok || target == "" {
		return ""
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(name), target)
	}
	return target
}
