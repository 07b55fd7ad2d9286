package main

import (
	"context"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/broker"
)

// replacement says by when a client's secret is to be replaced, and, from 80 %
// of that age or once the issuer has refused it, how a person does that.
func replacement(c broker.ClientStatus, cfg configs.Client, now time.Time) (due time.Time, steps []string) {
	due = c.Due()
	soon := !due.IsZero() && due.Sub(now) < c.MaxAge/5
	if soon || c.Credential.Dead {
		steps = cfg.Rotation.Steps
	}
	return due.UTC(), steps
}

// rotateKey adds what a person does at the issuer.
func (s *server) rotateKey(ctx context.Context, name string, r client.KeyRotation) (client.RotatedKey, error) {
	out, err := s.broker.RotateKey(ctx, name, r)
	if err == nil && out.State == client.KeyPending {
		s.mu.Lock()
		out.Steps = s.current.config.Clients[name].Rotation.Steps
		s.mu.Unlock()
	}
	return out, err
}
