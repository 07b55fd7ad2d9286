package main

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxLine bounds what is read from a prompt, in bytes.
const maxLine = 16 << 10

// hide keeps a terminal from showing what is typed, until show is called. What
// is no terminal shows nothing anyhow.
func hide(in *os.File) (show func(), err error) {
	fd := int(in.Fd())
	shown, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, nil //nolint:nilerr // it is no terminal
	}
	hidden := *shown
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return nil, errors.New("the terminal cannot hide what is typed: give it on standard input")
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, shown) }, nil
}

// readLine reads one line, or what there is of it, until ctx ends.
func readLine(ctx context.Context, in *os.File) (string, error) {
	fd := int(in.Fd())
	buf := make([]byte, maxLine)
	defer clear(buf)
	for n := 0; n < len(buf); {
		if err := readable(ctx, fd); err != nil {
			return "", err
		}
		more, err := unix.Read(fd, buf[n:])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return "", os.NewSyscallError("read", err)
		case more == 0 && n == 0:
			return "", io.ErrUnexpectedEOF
		case more == 0:
			return string(buf[:n]), nil
		}
		for i := n; i < n+more; i++ {
			if buf[i] == '\n' {
				return string(buf[:i]), nil
			}
		}
		n += more
	}
	return "", errors.New("the line is too long")
}

// readable waits until fd has something to read, or ctx ends.
func readable(ctx context.Context, fd int) error {
	wake, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	defer end.Close()
	defer context.AfterFunc(ctx, func() { _ = end.Close() })()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}, -1)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.EINTR):
		default:
			return err
		}
	}
}
