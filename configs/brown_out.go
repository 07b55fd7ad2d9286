package configs

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"credentialbroker/internal/clock"
)

// BrownOut seals a copy of each client's secret that has worked, for a start
// while its secrets manager does not answer: docs/brown-out.md says what that
// is worth to whoever has the disk. A change is taken with the next reload.
type BrownOut struct {
	// Provider is a key of providers, of kind file, that nothing else uses. The
	// broker makes its directory, and replaces and removes what is in it.
	Provider string `yaml:"provider" check:"required" hint:"name a key of providers: that is a file store of its own"`
	// MaxAge is how long after the secrets manager's last good answer a copy may
	// serve, at most 30d. Missing: 24h.
	MaxAge clock.Duration `yaml:"max_age"`
}

// Copies is the directory of the sealed copies; empty: none are kept.
func (c *Config) Copies() string {
	if c.BrownOut == nil {
		return ""
	}
	return c.Providers[c.BrownOut.Provider].File.Path
}

// Copied says whether a client's secret is copied: one that is on this host
// anyway is not, and neither is one that needs a person's login, whose refresh
// token no copy can stand for.
func (c *Config) Copied(client Client) bool {
	p := c.Providers[client.Secret.Provider]
	return c.BrownOut != nil && p.File == nil && p.Systemd == nil && client.Refresh == nil
}

func (k *checker) brownOut(b *BrownOut) {
	if b == nil {
		return
	}
	const path, longest = "brown_out.provider", 30 * 24 * time.Hour
	k.when(b.MaxAge <= 0 || b.MaxAge.D() > longest, "brown_out.max_age", "a copy cannot serve for "+b.MaxAge.String(), "more than 0s, at most 30d", "")
	if _, written := k.places[path]; !written || k.bad[path] {
		return
	}
	k.reference(path, b.Provider)
	p := k.c.Providers[b.Provider]
	if p.File == nil {
		k.when(p.Kind() != "", path, fmt.Sprintf("the provider %s is no store on this host", quote(b.Provider)), "a provider of kind file", "")
		return
	}
	alone := func(provider, who string) {
		k.when(provider == b.Provider, path, fmt.Sprintf("the provider %s holds the secret of %s too", quote(provider), who), "a provider of kind file that nothing else uses", "")
	}
	for _, name := range slices.Sorted(maps.Keys(k.c.Clients)) {
		c := k.c.Clients[name]
		alone(c.Secret.Provider, "the client "+quote(name))
		if c.Refresh != nil {
			alone(c.Refresh.Provider, "the client "+quote(name))
		}
	}
	if k.c.Leak != nil && k.c.Leak.SMTP.Secret != nil {
		alone(k.c.Leak.SMTP.Secret.Provider, "the mail relay")
	}
	if k.c.Leak != nil && k.c.Leak.Sign != nil {
		alone(k.c.Leak.Sign.Secret.Provider, "the signature of reports")
	}
	if w := k.c.Alarm.Webhook; w != nil {
		alone(w.Secret.Provider, "the webhook of alarm")
	}
	for _, name := range slices.Sorted(maps.Keys(k.c.Providers)) {
		other := k.c.Providers[name].File
		k.when(name != b.Provider && other != nil && filepath.Clean(other.Path) == filepath.Clean(p.File.Path), join("providers", b.Provider)+".file.path",
			fmt.Sprintf("the provider %s has the same directory, and the copies need one of their own", quote(name)), "", "as in /var/lib/credential-broker/brown-out")
	}
}

// brownOut warns of clients whose copies would be too old before the secrets
// manager is asked again.
func (w *warner) brownOut(c *Config) {
	if c.BrownOut == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		client := c.Clients[name]
		if poll := client.Rotation.Poll; c.BrownOut.MaxAge > 0 && poll > c.BrownOut.MaxAge/2 && c.Copied(client) {
			w.warn(client.at, fmt.Sprintf("the client %s: its secrets manager is asked every %s, and a copy may serve for %s after that: a start in an outage may find it too old", quote(name), poll, c.BrownOut.MaxAge),
				"set brown_out.max_age to a multiple of rotation.poll")
		}
	}
}
