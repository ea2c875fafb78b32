guest!(SIXTEEN, 16, "mov ax, 0x1234", "out dx, eax");
guest!(THIRTY_TWO, 32, "mov ax, 0x1234", "out dx, eax");
guest!(SIXTY_FOUR, 64, "mov rax, rbx", "out dx, eax");

#[test]
fn each_size_of_code_is_assembled_for_its_own_mode() {
    assert_eq!(SIXTEEN.code(), [0xB8, 0x34, 0x12, 0x66, 0xEF]);
    assert_eq!(THIRTY_TWO.code(), [0x66, 0xB8, 0x34, 0x12, 0xEF]);
    assert_eq!(SIXTY_FOUR.code(), [0x48, 0x89, 0xD8, 0xEF]);
}

#[test]
fn a_guest_keeps_its_text() {
    assert_eq!(SIXTEEN.source, "mov ax, 0x1234\nout dx, eax\n");
    assert_eq!(SIXTEEN.name, "SIXTEEN");
}
