//! `vortex-agent tls-self-test`: one TLS connection inside this process, for `doctor` to look at. No
//! certificate, no socket, no file: an anonymous cipher over a pair of memory BIOs.
//!
//! The library is the system's own, opened as any program would: the point is to see through it.

use std::{
    ffi::{CStr, c_char, c_int, c_long, c_void},
    ptr,
};

use anyhow::{Result, bail};

/// What the client sends and the server reads.
pub const MARKER: &str = "vortex-agent self-test: this line went through TLS";

/// OpenSSL's names, newest first.
const LIBRARIES: [&CStr; 3] = [c"libssl.so.3", c"libssl.so.4", c"libssl.so.1.1"];

pub fn call() -> Result<()> {
    let Some(library) = LIBRARIES.iter().find_map(|name| Library::open(name)) else {
        bail!("no libssl on this machine");
    };
    // SAFETY: the functions of libssl 1.1 to 4.0, called as their manual pages say, on objects of theirs
    // that live until this process ends.
    unsafe { converse(&library) }
}

/// A loaded library; stays loaded.
struct Library(*mut c_void);

impl Library {
    fn open(name: &CStr) -> Option<Library> {
        // SAFETY: a C string; the library's constructors are OpenSSL's.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        (!handle.is_null()).then_some(Library(handle))
    }

    fn find(&self, name: &CStr) -> Result<*mut c_void> {
        // SAFETY: an open library and a C string.
        let function = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if function.is_null() {
            bail!("libssl has no {}", name.to_string_lossy());
        }
        Ok(function)
    }
}

/// A function of the library, by its C type.
macro_rules! function {
    ($library:expr, $name:literal, $type:ty) => {
        std::mem::transmute::<*mut c_void, $type>($library.find($name)?)
    };
}

type Object = *mut c_void;

unsafe fn converse(library: &Library) -> Result<()> {
    const SET_MAX_PROTO_VERSION: c_int = 124;
    const TLS1_2: c_long = 0x0303;
    // SAFETY: the caller's; the types are those of the manual pages.
    unsafe {
        let method = function!(library, c"TLS_method", extern "C" fn() -> Object);
        let new_context = function!(library, c"SSL_CTX_new", extern "C" fn(Object) -> Object);
        let control = function!(
            library,
            c"SSL_CTX_ctrl",
            extern "C" fn(Object, c_int, c_long, Object) -> c_long
        );
        let ciphers = function!(
            library,
            c"SSL_CTX_set_cipher_list",
            extern "C" fn(Object, *const c_char) -> c_int
        );
        let new = function!(library, c"SSL_new", extern "C" fn(Object) -> Object);
        let pair = function!(
            library,
            c"BIO_new_bio_pair",
            extern "C" fn(*mut Object, usize, *mut Object, usize) -> c_int
        );
        let set_bio = function!(
            library,
            c"SSL_set_bio",
            extern "C" fn(Object, Object, Object)
        );
        let connect = function!(library, c"SSL_connect", extern "C" fn(Object) -> c_int);
        let accept = function!(library, c"SSL_accept", extern "C" fn(Object) -> c_int);
        let write = function!(
            library,
            c"SSL_write",
            extern "C" fn(Object, *const u8, c_int) -> c_int
        );
        let read = function!(
            library,
            c"SSL_read",
            extern "C" fn(Object, *mut u8, c_int) -> c_int
        );

        let context = new_context(method());
        // TLS 1.3 has no anonymous ciphers.
        control(context, SET_MAX_PROTO_VERSION, TLS1_2, ptr::null_mut());
        if ciphers(context, c"AECDH-AES128-SHA:@SECLEVEL=0".as_ptr()) != 1 {
            bail!("this libssl has no anonymous cipher to test with");
        }
        let (client, server) = (new(context), new(context));
        let (mut near, mut far) = (ptr::null_mut(), ptr::null_mut());
        if client.is_null() || server.is_null() || pair(&mut near, 0, &mut far, 0) != 1 {
            bail!("libssl could not make a connection");
        }
        set_bio(client, near, near);
        set_bio(server, far, far);
        let mut done = false;
        for _ in 0..20 {
            let connected = connect(client) == 1;
            if accept(server) == 1 && connected {
                done = true;
                break;
            }
        }
        if !done {
            bail!("the TLS handshake did not end");
        }
        let mut buffer = [0; 256];
        let sent = write(client, MARKER.as_ptr(), MARKER.len() as c_int);
        let received = read(server, buffer.as_mut_ptr(), buffer.len() as c_int);
        if sent != MARKER.len() as c_int || received != sent {
            bail!("{sent} bytes were written and {received} read");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_system_library_talks_to_itself() {
        if let Err(error) = super::call() {
            assert!(error.to_string().contains("no libssl"), "{error}");
            eprintln!("SKIP: {error}");
        }
    }
}
