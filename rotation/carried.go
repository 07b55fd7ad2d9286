package rotation

// Rules of this file: a token may outlive the process that got it, and only
// together with the bundle that minted it. What that was is known by its place
// and version; nothing that was made of its values is kept.

// Origin names the bundle for a process after this one: where it is from, and
// which version.
func (l *Live) Origin() string { return string(l.id) }

// Same gives the bundle that serves, if it is the one that origin names and may
// serve; nil: it is another one, or may not. It does no I/O: told is false as
// long as the secrets manager has not said which one there is.
func (c *Credential) Same(origin string) (live *Live, told bool) {
	now := c.deps.Clock.Now()
	live = c.Current()
	switch {
	case live == nil || c.withheld(now) != nil: // it may come back
		return nil, false
	case live.Origin() != origin, c.refused(live.id), !live.Expires.IsZero() && !now.Wall.Before(live.Expires):
		return nil, true
	}
	return live, true
}
