"""What `benchmarks.methods_table --tune` tries for each method: few values of the constant that matters most.

Each list holds the method's defaults, the strengths that its paper or code tries where they are known, and weaker
ones, since the bundled models look harder at their pictures than the models that the papers write about. Layers are
given where the defaults count on a decoder of 32.
"""

GRIDS: dict[str, list[str]] = {
    "boost": ["boost", "boost(strength=1.3)", "boost(strength=4)"],
    "var": ["var", "var(tau=2.5)", "var(tau=2, p=0.2)", "var(tau=2, rho=0.8, summ=0.1, start=0)"],
    "pai": ["pai", "pai(start=0)", "pai(alpha=0.5, start=0)", "pai(alpha=0.2, gamma=1.5, start=0)"],
    "vhr": ["vhr(layers=2)", "vhr(alpha=1.2, layers=2)", "vhr(alpha=1.2)", "vhr(alpha=1.5, layers=2)"],
    "instaboost": ["instaboost", "instaboost(strength=1.3)", "instaboost(strength=5)"],
    "pasta": ["pasta", "pasta(alpha=0.3)", "pasta(alpha=0.7)"],
    "spotlight": ["spotlight", "spotlight(target=0.1)", "spotlight(target=0.5)"],
    "split-softmax": ["split-softmax", "split-softmax(power=0.9)", "split-softmax(power=0.5)"],
    "act": ["act", "act(start=0, spared=0)", "act(beta=0.7)", "act(threshold=0.05, start=0)"],
    "cmai": ["cmai", "cmai(share=0.25)", "cmai(factor=0.5)", "cmai(share=0.25, factor=0.5)"],
    "dola": ["dola", "dola(layers='low')", "dola(alpha=0.3)", "dola(norm=1)"],
    "deco": ["deco", "deco(alpha=0.2)", "deco(norm=1)", "deco(alpha=0.2, norm=1)"],
    "vcd": ["vcd", "vcd(alpha=0.5)", "vcd(noise_step=700)", "vcd(alpha=0.5, noise_step=999)"],
    "icd": ["icd", "icd(alpha=0.3)", "icd(alpha=2)"],
    "m3id": ["m3id", "m3id(rate=0.1, beta=0.1)", "m3id(rate=0.005)"],
    "iava": ["iava", "iava(alpha=0.3)", "iava(lam=0.5)"],
    "avisc": ["avisc", "avisc(alpha=1)", "avisc(alpha=1, lam=0)"],
    "rbd": ["rbd", "rbd(alpha_t=0.5, alpha_v=0.3)", "rbd(alpha_t=1, alpha_v=0.5, share=0.5)"],
    "paint": [
        "paint",
        "paint(start=0, local=0.3, summary=0.2)",
        "paint(start=0, local=0.3, summary=0.2, modulation=1)",
    ],
    "sid": ["sid", "sid(alpha=0.5)", "sid(start=1)", "sid(share=0.087)"],
    "api": ["api", "api(strength=0.5)", "api(scorer='clip')", "api(scorer='clip', strength=0.5)"],
}
