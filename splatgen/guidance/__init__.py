"""From a render to its gradient: conditioning, denoiser, distillation, scores and preferences.

Not here: any concrete prior or reward, which are known by their protocols, and the splats themselves.
"""
