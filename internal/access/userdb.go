package access

import (
	"context"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// userDatabase says which groups a user is in where the kernel does not:
// /etc/passwd and /etc/group, then getent, which knows directories (LDAP,
// SSSD). The zero value is ready.
type userDatabase struct {
	mu    sync.Mutex
	known map[uint32]membership
}

type membership struct {
	name   string // empty: the database does not know the user
	gid    uint32
	groups []uint32 // gid included; sorted, each once
	read   time.Time
}

const (
	membershipFresh = time.Minute
	getentWait      = 2 * time.Second
	manyMembers     = 4096 // then all are forgotten
)

// groups is the user's group and all of them; nobody and none if the database
// does not know the user.
func (u *userDatabase) groups(uid uint32) (gid uint32, groups []uint32) {
	m := u.find(uid)
	return m.gid, m.groups
}

// name is the user's name, or the number.
func (u *userDatabase) name(uid uint32) string {
	if m := u.find(uid); m.name != "" {
		return m.name
	}
	return strconv.FormatUint(uint64(uid), 10)
}

func (u *userDatabase) find(uid uint32) membership {
	u.mu.Lock()
	m, ok := u.known[uid]
	u.mu.Unlock()
	if ok && time.Since(m.read) < membershipFresh {
		return m
	}
	m = lookUp(uid) // not under the lock: one slow answer holds up one user
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil || len(u.known) >= manyMembers {
		u.known = map[uint32]membership{}
	}
	u.known[uid] = m
	return m
}

func lookUp(uid uint32) membership {
	m := membership{gid: nobody, read: time.Now()}
	number := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(number)
	if err != nil {
		f := strings.Split(strings.TrimSpace(askDatabase("passwd", number)), ":")
		if len(f) < 4 || f[2] != number {
			return m
		}
		u = &user.User{Username: f[0], Uid: f[2], Gid: f[3]}
	}
	m.name = u.Username
	add := func(id string) (uint32, bool) {
		n, err := parseID(id)
		if err == nil {
			m.groups = append(m.groups, n)
		}
		return n, err == nil
	}
	if gid, ok := add(u.Gid); ok {
		m.gid = gid
	}
	ids, _ := u.GroupIds() // of /etc/group, whatever the directory says
	if f := strings.Fields(askDatabase("initgroups", u.Username)); len(f) > 1 {
		ids = append(ids, f[1:]...)
	}
	for _, id := range ids {
		add(id)
	}
	slices.Sort(m.groups)
	m.groups = slices.Compact(m.groups)
	return m
}

// askDatabase is one line of getent: of the database, or nothing.
func askDatabase(database, key string) string {
	if key == "" || strings.HasPrefix(key, "-") {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), getentWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "getent", database, key)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return string(out)
}
